from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ol_registry_sqlite.plugin import SqliteSettings, ol_registry_backends
from olcore.errors import RegistryError
from olcore.interfaces import Registry
from olcore.testing.registry import WritableRegistryContract, registry_context


class TestSqliteContract(WritableRegistryContract):
    @pytest.fixture
    def make_registry(self, tmp_path: Path) -> Callable[[], Registry]:
        [backend] = ol_registry_backends()
        return lambda: backend.make(registry_context(tmp_path), SqliteSettings())


async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "handlers.sqlite").write_text("this is no database, and never was one")
    [backend] = ol_registry_backends()
    registry = backend.make(registry_context(tmp_path), SqliteSettings())
    with pytest.raises(RegistryError, match=r"handlers.sqlite"):
        await registry.start()
