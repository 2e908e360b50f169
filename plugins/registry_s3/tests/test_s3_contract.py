"""The registry s3 keeps the contract, over a server and over other fsspec backends."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ol_registry_s3.plugin import ol_registry_backends
from ol_registry_s3.settings import S3Settings
from ol_registry_s3.store import Store
from olcore.interfaces import Registry
from olcore.testing.registry import WritableRegistryContract, registry_context

from .conftest import Nanio  # noqa: TID252  # its full name depends on where pytest is run


def maker(folder: Path, **settings: Any) -> Callable[[], Registry]:
    [backend] = ol_registry_backends()
    checked = S3Settings(**settings)
    assert backend.why_unusable(checked) is None
    return lambda: backend.make(registry_context(folder), checked)


class TestMemoryContract(WritableRegistryContract):
    @pytest.fixture
    def make_registry(self, tmp_path: Path) -> Callable[[], Registry]:
        return maker(tmp_path, url=f"memory://{uuid.uuid4().hex}/handlers")


class TestFileContract(WritableRegistryContract):
    @pytest.fixture
    def make_registry(self, tmp_path: Path) -> Callable[[], Registry]:
        (tmp_path / "registry").mkdir()
        return maker(tmp_path, url=f"file://{tmp_path}/registry")


class TestNanioContract(WritableRegistryContract):
    @pytest.fixture
    def make_registry(
        self, tmp_path: Path, shared_nanio: Nanio, bucket: str
    ) -> Callable[[], Registry]:
        return maker(tmp_path, **shared_nanio.settings(f"{bucket}/some/prefix"))


class TestMotoContract(WritableRegistryContract):
    """A server that decides about conditional writes itself, as Amazon's does."""

    @pytest.fixture
    def make_registry(self, tmp_path: Path, moto: str) -> Callable[[], Registry]:
        settings: dict[str, Any] = {
            "url": f"s3://bucket-{uuid.uuid4().hex}",
            "endpoint": moto,
            "key": "testing",
            "secret": "testing",
            "region": "us-east-1",
        }
        store = Store(S3Settings(**settings), 10.0)
        store.make_bucket()
        store.close()
        return maker(tmp_path, **settings)
