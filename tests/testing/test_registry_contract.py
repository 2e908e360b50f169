"""The fake registry, held to the contract of what it stands for: one that cannot be written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from olcore import bundles
from olcore.interfaces import Registry
from olcore.testing.fakes import FakeRegistry
from olcore.testing.registry import BOUNDS, RegistryContract, Store


class TestFakeRegistryContract(RegistryContract):
    @pytest.fixture
    def make_registry(self) -> Callable[[], Registry]:
        one = FakeRegistry()
        return lambda: one

    @pytest.fixture
    def store(self, registry: Registry) -> Store:
        assert isinstance(registry, FakeRegistry)

        async def put(name: str, bundle: Path) -> None:
            with tempfile.TemporaryDirectory() as folder:
                code = Path(folder)
                bundles.unpack(bundle, code, BOUNDS)
                files = {
                    str(path.relative_to(code)): path.read_text()
                    for path in code.rglob("*")
                    if path.is_file()
                }
            registry.put(name, files)

        return put
