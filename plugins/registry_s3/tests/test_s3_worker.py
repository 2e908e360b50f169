"""The whole path over HTTP: a worker's handlers run what a real S3 server has, and outlive it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ol_registry_s3.plugin import ol_registry_backends
from ol_registry_s3.settings import S3Settings
from olcore.builtin.lifo import Lifo
from olcore.cluster import WorkerDir
from olcore.errors import HandlerInvalidError, RegistryUnavailableError
from olcore.handlers.manager import Manager
from olcore.handlers.options import Options
from olcore.interfaces import Limits, Network, Registry
from olcore.testing.fakes import FakePool
from olcore.testing.registry import make_bundle, registry_context

from .conftest import Nanio  # noqa: TID252  # its full name depends on where pytest is run

CACHE_MS = 200
TIMEOUT_S = 3.0


class Site:
    """A worker's manager with a registry on a server that can be stopped."""

    def __init__(self, folder: Path, registry: Registry, manager: Manager) -> None:
        self._folder = folder
        self.registry = registry
        self.manager = manager
        self.pulled: list[str] = []
        self._count = 0

    async def upload(self, name: str, word: str) -> None:
        bundle = make_bundle(
            self._folder, {"lambda_func.py": f"def handler(event):\n    return {word!r}\n"}
        )
        await self.registry.publish(name, bundle)

    async def call(self, name: str) -> str:
        self._count += 1
        reply = await self.manager.invoke(name, b"{}", f"r{self._count}")
        said: str = json.loads(reply.result)
        return said

    async def call_until(self, name: str, word: str) -> list[str]:
        """Call until *word* is answered, and return every answer."""
        heard: list[str] = []
        async with asyncio.timeout(20):
            while not heard or heard[-1] != word:
                heard.append(await self.call(name))
        return heard


@pytest.fixture
async def site(nanio: Nanio, tmp_path: Path) -> AsyncIterator[Site]:
    [backend] = ol_registry_backends()
    settings = S3Settings(**nanio.settings(nanio.make_bucket("handlers")))
    registry = backend.make(registry_context(tmp_path, timeout_s=TIMEOUT_S), settings)
    await registry.start()
    pool = FakePool()
    await pool.start()
    worker_dir = WorkerDir(tmp_path / "worker-0")
    worker_dir.root.mkdir()
    pulled: list[str] = []

    def emit(hook: str, **told: Any) -> None:
        if hook == "ol_handler_pulled":
            pulled.append(told["version"].name)

    manager = Manager(
        pool=pool,
        registry=registry,
        scheduler=Lifo(),
        import_cache=None,
        packages=None,
        options=Options(
            limits=Limits(timeout_s=10.0),
            max_limits=Limits(timeout_s=60.0),
            network=Network.NONE,
            max_instances=4,
            max_queue=10,
            idle_timeout_s=300.0,
            pause_after_ms=0,
            memory_pool_mb=4096,
            registry_cache_ms=CACHE_MS,
            max_bundle_mb=4,
            max_bundle_files=64,
            packages_dir=tmp_path / "packages",
        ),
        worker_dir=worker_dir,
        emit=emit,
    )
    await manager.start()
    made = Site(tmp_path, registry, manager)
    made.pulled = pulled
    yield made
    await manager.close(0.0)
    await registry.close()
    await pool.close()


async def test_an_update_is_served_and_never_taken_back(site: Site) -> None:
    await site.upload("hello", "one")
    assert await asyncio.gather(*(site.call("hello") for _ in range(4))) == ["one"] * 4
    assert site.pulled == ["hello"], "requests at once pull once"
    await site.upload("hello", "two")
    heard = await site.call_until("hello", "two")
    assert heard == sorted(heard, key=["one", "two"].index)
    assert [await site.call("hello") for _ in range(3)] == ["two"] * 3
    assert site.pulled == ["hello", "hello"]


async def test_cached_code_outlives_the_server(site: Site, nanio: Nanio) -> None:
    await site.upload("hello", "one")
    await site.upload("other", "other")
    assert await site.call("hello") == "one"
    nanio.stop()
    began = time.monotonic()
    while time.monotonic() < began + CACHE_MS / 1000 * 3:
        assert await site.call("hello") == "one"
    assert site.manager.stale_served
    with pytest.raises(RegistryUnavailableError) as caught:
        await site.call("other")
    assert caught.value.retry_after_s
    nanio.start()
    await site.upload("hello", "two")
    await site.call_until("hello", "two")
    assert await site.call("other") == "other"


async def test_a_missing_bucket_says_so_and_a_bad_bundle_too(
    site: Site, nanio: Nanio, tmp_path: Path
) -> None:
    evil = tmp_path / "evil.tar.gz"
    evil.write_bytes(b"not gzip at all")
    await site.registry.publish("evil", evil)
    with pytest.raises(HandlerInvalidError, match=r"evil.tar.gz is not gzip"):
        await site.call("evil")
    (nanio.folder / "handlers").rename(nanio.folder / "away")
    with pytest.raises(RegistryUnavailableError, match="the bucket does not exist"):
        await site.call("hello")
