"""Bytecode by the Python of the sandboxes."""

from __future__ import annotations

import importlib.util
import marshal
from pathlib import Path

import pytest

from ol_sandbox_sock.pool import SockPool
from ol_sandbox_sock.settings import SockSettings
from olcore.cluster import WorkerDir
from olcore.handlers.compiling import SandboxCompiler
from olcore.interfaces import Limits, Network, WorkerContext
from tests.integration.clusters import Cluster, await_true

pytestmark = pytest.mark.kernel

LONG = "def handler(event):\n    return __cached__\n" + "def f(x):\n    return x\n" * 100


def test_a_handler_is_compiled_beside_its_first_request(running: Cluster) -> None:
    running.add("long", LONG, olcore_toml="reuse_sandbox = false\n")
    cached = running.call("long").json
    code = running.root / "workers/worker-0/code/long"
    await_true(lambda: list(code.glob(f"*/__pycache__/{Path(cached).name}")), "it is compiled")
    assert running.call("long").json == cached


async def test_a_folder_is_compiled_inside_a_sandbox(tmp_path: Path) -> None:
    context = WorkerContext(
        cluster_name=str(tmp_path),
        worker_name="worker-0",
        worker_dir=tmp_path / "worker-0",
        base_dir=tmp_path / "base",
        packages_dir=tmp_path / "packages",
        limits=Limits(),
        network=Network.NONE,
    )
    worker_dir = WorkerDir(context.worker_dir)
    wheel = context.packages_dir / ".tmp" / "one-1-py3-none-any"
    for folder in (worker_dir.handlers, context.base_dir, wheel / "one"):
        folder.mkdir(parents=True)
    (wheel / "one" / "__init__.py").write_text("X = 1\n")
    (wheel / "one" / "old.py").write_text("print 'bad syntax'\n")
    (wheel / "top.py").write_text("Y = 2\n")
    pool = SockPool(context, SockSettings())
    await pool.start()
    try:
        await SandboxCompiler(pool, worker_dir)(wheel)
    finally:
        await pool.close()
    assert len(list(wheel.rglob("*.pyc"))) == 2
    cached = Path(importlib.util.cache_from_source(str(wheel / "one" / "__init__.py")))
    code = marshal.loads(cached.read_bytes()[16:])
    assert code.co_filename == "/packages/one-1-py3-none-any/one/__init__.py"
    source = (wheel / "one" / "__init__.py").stat()
    assert int.from_bytes(cached.read_bytes()[8:12], "little") == int(source.st_mtime)
    assert not list(worker_dir.handlers.glob("*/*"))
