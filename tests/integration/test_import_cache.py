"""Packages, the tree of zygotes and SOCK together, as one worker has them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ol_cache_import.cache import TreeCache
from ol_cache_import.plugin import TreeSettings
from ol_sandbox_sock.pool import SockPool
from ol_sandbox_sock.settings import SockSettings
from olcore.builtin.lifo import Lifo
from olcore.cluster import WorkerDir
from olcore.handlers.compiling import SandboxCompiler
from olcore.handlers.manager import Manager, Options
from olcore.handlers.packages import PackageOptions, Packages
from olcore.interfaces import Limits, Network, WorkerContext
from olcore.testing.fakes import FakeRegistry
from olcore.testing.wheels import WheelFolder

pytestmark = pytest.mark.kernel

DEADLINE_S = 60.0
# Says whether its package had been imported before, and holds on, so that the next request needs another instance.
SOURCE = """
import sys, time
BEFORE = "slow" in sys.modules
import slow
def handler(event):
    time.sleep(event or 0)
    return {"before": BEFORE, "turbo": slow.TURBO}
"""
RANDOM = """
import sys, time, random, uuid, tempfile
BEFORE = "numpy" in sys.modules
import numpy
def handler(event):
    time.sleep(event or 0)
    drawn = [numpy.random.random(), numpy.random.default_rng().random(), random.random(), uuid.uuid4().hex]
    return {"before": BEFORE, "drawn": [*drawn, tempfile.mktemp()]}
"""


class Whole:
    """A manager with real packages, a real import cache and real sandboxes."""

    def __init__(self, folder: Path, **options: Any) -> None:
        context = WorkerContext(
            cluster_name=str(folder),
            worker_name="worker-0",
            worker_dir=folder / "worker-0",
            base_dir=folder / "base",
            packages_dir=folder / "packages",
            limits=Limits(memory_mb=256),
            network=Network.NONE,
        )
        for path in (context.worker_dir, context.base_dir, context.packages_dir):
            path.mkdir()
        self.context = context
        self.registry = FakeRegistry()
        self.pool = SockPool(context, SockSettings())
        self.cache = TreeCache(context, TreeSettings(), self.pool)
        self._options = PackageOptions(**options)

    async def open(self) -> None:
        await self.pool.start()
        await self.cache.start()
        self.packages = Packages(
            packages_dir=self.context.packages_dir,
            lock_dir=self.context.packages_dir / ".locks",
            guest=await self.pool.probe(),
            options=self._options,
            compile_bytecode=SandboxCompiler(self.pool, WorkerDir(self.context.worker_dir)),
        )
        self.manager = Manager(
            pool=self.pool,
            registry=self.registry,
            scheduler=Lifo(),
            import_cache=self.cache,
            packages=self.packages,
            options=Options(
                limits=self.context.limits,
                max_limits=Limits(memory_mb=1024),
                network=Network.NONE,
                max_instances=8,
                max_queue=10,
                idle_timeout_s=300.0,
                pause_after_ms=0,
                memory_pool_mb=4096,
                registry_cache_ms=0,
                max_bundle_mb=250,
                max_bundle_files=20000,
                packages_dir=self.context.packages_dir,
            ),
            worker_dir=WorkerDir(self.context.worker_dir),
            emit=lambda hook, **arguments: None,
        )
        await self.manager.start()

    async def close(self) -> None:
        await self.manager.close(0.0)
        await self.packages.close()
        await self.cache.close()
        await self.pool.close()

    async def call(self, name: str, event: Any = None) -> Any:
        async with asyncio.timeout(DEADLINE_S):
            reply = await self.manager.invoke(name, json.dumps(event).encode(), "r")
        return json.loads(reply.result)

    async def together(self, name: str, number: int) -> list[Any]:
        """Call *number* instances, each of which is busy while the others are asked."""
        return await asyncio.gather(*(self.call(name, 0.5) for _ in range(number)))

    async def settled(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self.cache.settle()


@pytest.fixture
async def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Whole]:
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    wheels = WheelFolder(tmp_path / "wheels")
    slow = "import time\ntime.sleep(0.05)\ntry:\n    import turbo\n    TURBO = True\nexcept ImportError:\n    TURBO = False\n"
    wheels.add("slow", "1.0", {"slow.py": slow})
    wheels.add("turbo", "1.0", {"turbo.py": ""})
    whole = Whole(tmp_path, offline=True, find_links=str(wheels.folder))
    await whole.open()
    yield whole
    await whole.close()


async def test_the_second_instance_is_forked_with_its_packages_imported(whole: Whole) -> None:
    whole.registry.put("one", {"lambda_func.py": SOURCE, "packages.txt": "slow\n"})
    assert await whole.call("one") == {"before": False, "turbo": False}
    await whole.settled()
    answers = await whole.together("one", 3)
    assert sorted(answer["before"] for answer in answers) == [False, True, True]
    (zygote,) = whole.cache.describe()
    assert zygote["descendants"] == 2


async def test_an_optional_package_that_the_zygote_had_not_is_not_lost(whole: Whole) -> None:
    whole.registry.put("plain", {"lambda_func.py": SOURCE, "packages.txt": "slow\n"})
    whole.registry.put("fast", {"lambda_func.py": SOURCE, "packages.txt": "slow\nturbo\n"})
    await whole.call("plain")
    await whole.settled()
    assert await whole.call("fast") == {"before": False, "turbo": True}
    await whole.settled()
    for name, turbo in (("plain", False), ("fast", True)):
        answers = await whole.together(name, 2)
        assert {"before": True, "turbo": turbo} in answers
        assert {answer["turbo"] for answer in answers} == {turbo}


async def test_a_module_of_the_handlers_own_is_not_hidden_by_a_zygote(whole: Whole) -> None:
    whole.registry.put("plain", {"lambda_func.py": SOURCE, "packages.txt": "slow\n"})
    await whole.call("plain")
    await whole.settled()
    own = {"lambda_func.py": SOURCE, "packages.txt": "slow\n", "slow.py": "TURBO = 'own'\n"}
    whole.registry.put("own", own)
    assert await whole.call("own") == {"before": False, "turbo": "own"}


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_no_two_instances_draw_the_same_numbers(tmp_path: Path) -> None:
    whole = Whole(tmp_path)
    await whole.open()
    try:
        for snapshot in ("false", "true"):
            files = {
                "lambda_func.py": RANDOM,
                "packages.txt": "numpy\n",
                "olcore.toml": f"snapshot = {snapshot}\n",
            }
            whole.registry.put("h", files)
            await whole.call("h")
            await whole.settled()
            answers = await whole.together("h", 4)
            assert [answer["before"] for answer in answers].count(True) >= 3
            for drawn in zip(*(answer["drawn"] for answer in answers), strict=True):
                assert len(set(drawn)) == len(answers)
    finally:
        await whole.close()


async def test_a_handler_sees_its_own_packages_only_when_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    wheels = WheelFolder(tmp_path / "wheels")
    for name in ("slow", "other"):
        wheels.add(name, "1.0", {f"{name}.py": "import time\ntime.sleep(0.02)\n"})
    whole = Whole(tmp_path, offline=True, find_links=str(wheels.folder), private=True)
    await whole.open()
    source = "import os, sys, time\nBEFORE = {0!r} in sys.modules\nimport {0}\ndef handler(event):\n    time.sleep(event or 0)\n    return BEFORE, os.listdir('/packages')\n"
    try:
        for name in ("slow", "other"):
            files = {"lambda_func.py": source.format(name), "packages.txt": name}
            whole.registry.put(name, files)
            await whole.call(name)
        await whole.settled()
        for name in ("slow", "other"):
            answers = await whole.together(name, 2)
            assert [True, [f"{name}-1.0-py3-none-any"]] in answers
            assert [False, [f"{name}-1.0-py3-none-any"]] in answers
    finally:
        await whole.close()
