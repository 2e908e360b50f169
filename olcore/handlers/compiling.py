"""Compiles a folder's bytecode by the Python of the sandboxes, in a sandbox.

Only the guest's own Python writes bytecode that it can read; and although compiling runs none of the code, it reads a
stranger's text with a parser written in C. The sandbox has no network, sees the folder alone as its ``/packages``, and
leaves what it made in its scratch folder; from there it is copied beside the sources.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import stat
from typing import TYPE_CHECKING

from olcore.errors import OlcoreError
from olcore.handlers.code import Code
from olcore.handlers.instance import Instance
from olcore.handlers.settings import HandlerSettings
from olcore.interfaces import HandlerVersion, Limits, Network, Wanted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from olcore.cluster import WorkerDir
    from olcore.interfaces import SandboxPool

_log = logging.getLogger(__name__)

# No handler can be called so: '~' is not among the letters of names.
_NAME = "~compile"

_LIMITS = Limits(memory_mb=1536, scratch_mb=1024, timeout_s=300.0)
_AT_ONCE = 2
"""Each may take as much memory as several instances."""

# It runs on any Python that a guest may have. Names in the bytecode are those that handlers see.
_SOURCE = """
import os, py_compile, sys
def handler(event):
    made = 0
    for folder, _, files in os.walk("/packages"):
        below = os.path.relpath(folder, "/packages")
        for name in files:
            if not name.endswith(".py"):
                continue
            out = os.path.join("/host/out", below, "__pycache__", name[:-2] + sys.implementation.cache_tag + ".pyc")
            source = os.path.join(folder, name)
            try:
                py_compile.compile(source, out, os.path.join(event, below, name), doraise=True)
                made += 1
            except (py_compile.PyCompileError, ValueError, RecursionError, MemoryError):
                pass
    return made
"""


class SandboxCompiler:
    """Compiles folders, a few at a time.

    Args:
        pool: A pool that has been started.
        worker_dir: The worker's own folder.
    """

    def __init__(self, pool: SandboxPool, worker_dir: WorkerDir) -> None:
        self._pool = pool
        self._handlers = worker_dir.handlers
        self._code = worker_dir.root / "compile"
        self._numbers = itertools.count()
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._is_ready = False

    async def __call__(self, folder: Path) -> None:
        """Compile every source below *folder*; without success it is as good as before, but slower."""
        async with self._turn:
            instance = self._instance(folder)
            try:
                self._make_ready()
                await instance.start(self._pool, None)
                seen_as = json.dumps(f"/packages/{folder.name}").encode()
                await instance.channel.call(seen_as, _LIMITS.timeout_s)
                out = self._handlers / _NAME / instance.id / "out"
                await asyncio.to_thread(_copy, out, folder)
            except OlcoreError as error:
                _log.warning("no bytecode for %s: %s", folder.name, error.message)
            except OSError as error:
                # The disk is full, or the folder was removed meanwhile.
                _log.warning("no bytecode for %s: %s", folder.name, error)
            finally:
                await instance.destroy()

    def _make_ready(self) -> None:
        """Write the compiling handler, once: another one may be reading it."""
        if self._is_ready:
            return
        self._code.mkdir(exist_ok=True)
        self._code.chmod(0o755)
        source = self._code / "lambda_func.py"
        source.write_text(_SOURCE)
        source.chmod(0o644)
        self._is_ready = True

    def _instance(self, folder: Path) -> Instance:
        settings = HandlerSettings(
            limits=_LIMITS,
            network=Network.NONE,
            environment={},
            entry=("lambda_func.py", "handler"),
            snapshot=False,
            reuse_sandbox=False,
        )
        code = Code(
            version=HandlerVersion(name=_NAME, version="0"),
            folder=self._code,
            settings=settings,
            wanted=Wanted(handler=_NAME, wheels=()),
            packages=folder,
        )
        number = f"compile-{next(self._numbers)}"
        return Instance(number, code, 0, self._handlers / _NAME / number, lambda _: None)


def _copy(made: Path, folder: Path) -> None:
    for path in _compiled(made):
        there = folder / path.relative_to(made)
        source = there.parent.parent / f"{there.name.partition('.')[0]}.py"
        if not source.is_file():
            continue
        there.parent.mkdir(exist_ok=True)
        there.parent.chmod(0o755)
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                # By rename, because a handler's code may be imported at this moment.
                arriving = there.with_name(f".{there.name}")
                arriving.write_bytes(file.read())
                arriving.chmod(0o644)
                arriving.replace(there)


def _compiled(made: Path) -> Iterator[Path]:
    for root, _, files in os.walk(made):
        yield from (made / root / name for name in files if name.endswith(".pyc"))
