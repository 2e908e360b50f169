"""The contract of a pool with zygotes as a test class, and a fake held to it.

A backend's own tests subclass ``ZygoteContract`` as they do ``SandboxContract``; its ``pool`` is a ZygotePool that maps
the fixture ``context``'s ``packages_dir`` to ``/packages``.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from olcore.errors import SandboxDeadError, SandboxError
from olcore.interfaces import (
    ImportRecord,
    Limits,
    Sandbox,
    SandboxSpec,
    WorkerContext,
    Zygote,
    ZygotePool,
    ZygoteSpec,
)
from olcore.testing.fakes import FakePool
from olcore.testing.rendezvous import DEADLINE_S, Rig
from olcore.testing.sandbox import SandboxFixtures

# What a real sandbox does by a mount: /packages is the folder, and modules say that they come from there.
_MAPPED = """
import sys, importlib.machinery as m
sys.path.insert(0, sys.argv[1])
class Finder(m.FileFinder):
    def __init__(self, shown):
        details = (m.ExtensionFileLoader, m.EXTENSION_SUFFIXES), (m.SourceFileLoader, m.SOURCE_SUFFIXES)
        super().__init__(sys.argv[2] + shown[len("/packages"):], *details)
def hook(path):
    if not path.startswith("/packages/"):
        raise ImportError
    return Finder(path)
sys.path_hooks.insert(0, hook)
import json
for path, names in json.loads(sys.argv[3]):
    sys.path[:] = [*path, *(p for p in sys.path if p not in path)]
    for name in names:
        __import__(name)
"""
_ZYGOTE = (
    _MAPPED
    + """
from olguest.imports import Recorder
path, names = json.loads(sys.argv[4])
sys.path[:] = [*path, *(p for p in sys.path if p not in path)]
with Recorder(memory=True) as recorder:
    for name in names:
        __import__(name)
print(json.dumps([recorder.records, sorted(recorder.missed)]), flush=True)
sys.stdin.read()
"""
)
_GUEST = (
    _MAPPED
    + """
from olguest.server import main
main(host=sys.argv[4], handler=sys.argv[5])
"""
)

_Layers = list[tuple[list[str], list[str]]]


class FakeZygote(Zygote):
    """A process that has really imported, and is never forked: what would be forked imports anew."""

    def __init__(
        self,
        identity: str,
        parent: FakeZygote | None,
        process: subprocess.Popen[bytes],
        layer: tuple[list[str], list[str]],
    ) -> None:
        self.id = identity
        self.imported = []
        self.missed = frozenset()
        self.memory_bytes = 0
        self.layers: _Layers = [*(parent.layers if parent else []), layer]
        self.children: list[FakeZygote] = []
        self.sandboxes: list[Sandbox] = []
        self._process = process

    @property
    def descendants(self) -> int:
        zygotes = sum(1 + child.descendants for child in self.children if child.alive)
        return zygotes + len(self.sandboxes)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process that stands for it."""
        return self._process.pid

    async def destroy(self) -> None:
        for child in self.children:
            await child.destroy()
        for sandbox in list(self.sandboxes):
            await sandbox.destroy()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await asyncio.to_thread(self._process.wait)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


class FakeZygotePool(FakePool, ZygotePool):
    """``FakePool`` with zygotes.

    Args:
        packages: The folder that stands for ``/packages``.
    """

    def __init__(self, packages: Path) -> None:
        super().__init__()
        self.zygotes: list[FakeZygote] = []
        """Every zygote that was made, in order."""
        self._packages = packages
        self._watching: set[asyncio.Task[None]] = set()

    async def create_zygote(self, spec: ZygoteSpec, parent: Zygote | None) -> Zygote:
        fake = parent if isinstance(parent, FakeZygote) else None
        if fake is not None and not fake.alive:
            raise SandboxError(f"zygote {spec.id}: its parent {fake.id} is dead")
        code = str(spec.code)
        path = [code if one == "/handler" and spec.code else one for one in spec.sys_path]
        own = json.dumps((path, list(spec.imports)))
        with (spec.folder / "stderr").open("ab") as stderr:
            process = subprocess.Popen(
                [*self._command(_ZYGOTE, fake), own],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={"PATH": os.defpath, **spec.environment},
                start_new_session=True,
                cwd=spec.code,
            )
        zygote = FakeZygote(spec.id, fake, process, (path, list(spec.imports)))
        assert process.stdout is not None
        said = await asyncio.to_thread(process.stdout.readline)
        if not said:
            await zygote.destroy()
            last = (spec.folder / "stderr").read_text().strip().splitlines()[-1:]
            raise SandboxError(f"zygote {spec.id} could not be made: {''.join(last)}")
        records, missed = json.loads(said)
        zygote.imported = [self._record(*record) for record in records]
        zygote.missed = frozenset(missed)
        zygote.memory_bytes = 1024 * sum(record.self_kb for record in zygote.imported)
        if fake is not None:
            fake.children.append(zygote)
        self.zygotes.append(zygote)
        return zygote

    async def create(self, spec: SandboxSpec) -> Sandbox:
        zygote = spec.zygote
        if isinstance(zygote, FakeZygote) and not zygote.alive:
            raise SandboxError(f"sandbox {spec.id}: the zygote {zygote.id} is dead")
        sandbox = await super().create(spec)
        if isinstance(zygote, FakeZygote):
            zygote.sandboxes.append(sandbox)
            watch = asyncio.create_task(self._watch(zygote, sandbox))
            self._watching.add(watch)
            watch.add_done_callback(self._watching.discard)
        return sandbox

    async def close(self) -> None:
        for zygote in self.zygotes:
            await zygote.destroy()
        await super().close()
        await asyncio.gather(*self._watching)

    async def _watch(self, zygote: FakeZygote, sandbox: Sandbox) -> None:
        await sandbox.wait()
        zygote.sandboxes.remove(sandbox)

    def _command(self, program: str, zygote: FakeZygote | None) -> list[str]:
        layers = json.dumps(zygote.layers if zygote else [])
        python = [sys.executable, "-I", "-S", "-B", "-c", program]
        return [*python, self._guest_parent, str(self._packages), layers]

    def _record(self, module: str, file: str | None, self_us: int, self_kb: int) -> ImportRecord:
        if file is not None:
            file = file.replace(str(self._packages), "/packages", 1)
        return ImportRecord(module=module, file=file, self_us=self_us, self_kb=self_kb)

    def _spawn(self, spec: SandboxSpec) -> subprocess.Popen[bytes]:
        zygote = spec.zygote if isinstance(spec.zygote, FakeZygote) else None
        with ExitStack() as files:
            stdout, stderr = (
                files.enter_context((spec.scratch / name).open("ab"))
                for name in ("stdout", "stderr")
            )
            return subprocess.Popen(
                [*self._command(_GUEST, zygote), str(spec.scratch), str(spec.code)],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={"PATH": os.defpath},
                start_new_session=True,
            )


_numbers = itertools.count()

_LOADED = "import sys\nbefore = set(sys.modules)\ndef handler(event):\n    return event in before\n"


class ZygoteContract(SandboxFixtures):
    """What an import cache relies on, whatever the backend."""

    @pytest.fixture(autouse=True)
    def wheels(self, context: WorkerContext) -> Path:
        """Folders of wheels below ``/packages``."""
        files = {
            "base-1/base.py": "import json\ntry:\n    import turbo\nexcept ImportError:\n    turbo = None\n",
            "top-1/top/__init__.py": "import base\n",
            "top-1/top/part.py": "",
            "bad-1/bad.py": "raise RuntimeError('of no use')\n",
            "exits-1/exits.py": "import os\nos._exit(3)\n",
        }
        for name, text in files.items():
            file = context.packages_dir / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return context.packages_dir

    def spec(self, context: WorkerContext, *wheels: str, imports: tuple[str, ...]) -> ZygoteSpec:
        """Describe one zygote with *wheels* on its path."""
        identity = f"z{next(_numbers)}"
        folder = context.worker_dir / "import-cache" / identity
        folder.mkdir(parents=True)
        return ZygoteSpec(
            id=identity,
            folder=folder,
            sys_path=[f"/packages/{wheel}" for wheel in wheels],
            imports=imports,
        )

    async def test_a_zygote_says_what_it_imported_from_where_and_what_it_missed(
        self, pool: ZygotePool, context: WorkerContext
    ) -> None:
        zygote = await pool.create_zygote(self.spec(context, "base-1", imports=("base",)), None)
        assert zygote.alive
        assert "turbo" in zygote.missed
        last = zygote.imported[-1]
        assert (last.module, last.file) == ("base", "/packages/base-1/base.py")
        assert last.self_us >= 0
        assert zygote.memory_bytes >= 0

    async def test_a_zygote_of_a_zygote_has_its_parents_modules(
        self, pool: ZygotePool, context: WorkerContext
    ) -> None:
        parent = await pool.create_zygote(self.spec(context, "base-1", imports=("base",)), None)
        assert parent.descendants == 0
        spec = self.spec(context, "base-1", "top-1", imports=("top", "top.part"))
        child = await pool.create_zygote(spec, parent)
        assert [record.module for record in child.imported] == ["top", "top.part"]
        assert parent.descendants == 1
        await child.destroy()
        assert parent.descendants == 0

    @pytest.mark.parametrize(
        ("wheel", "reason"), [("bad-1", "of no use"), ("exits-1", "z"), ("none-1", "No module")]
    )
    async def test_an_import_that_fails_is_told_and_leaves_nothing(
        self, pool: ZygotePool, context: WorkerContext, wheel: str, reason: str
    ) -> None:
        spec = self.spec(context, wheel, imports=(wheel.partition("-")[0],))
        with pytest.raises(SandboxError, match=reason):
            await pool.create_zygote(spec, None)

    async def test_what_is_forked_from_a_zygote_has_its_modules_already(
        self, pool: ZygotePool, context: WorkerContext, wheels: Path, rig: Rig
    ) -> None:
        zygote = await pool.create_zygote(self.spec(context, "base-1", imports=("base",)), None)
        fields: dict[str, Any] = {"packages": wheels, "sys_path": ("/packages/base-1",)}
        forked = await rig.run(_LOADED, zygote=zygote, **fields)
        assert zygote.descendants == 1
        assert await forked.call("base") is True
        fresh = await rig.run(_LOADED, **fields)
        assert await fresh.call("base") is False
        await forked.sandbox.destroy()
        async with asyncio.timeout(DEADLINE_S):
            while zygote.descendants:
                await asyncio.sleep(0.01)

    async def test_destroying_a_zygote_takes_along_what_was_forked_from_it(
        self, pool: ZygotePool, context: WorkerContext, wheels: Path, rig: Rig
    ) -> None:
        parent = await pool.create_zygote(self.spec(context, "base-1", imports=("base",)), None)
        spec = self.spec(context, "base-1", "top-1", imports=("top",))
        child = await pool.create_zygote(spec, parent)
        instance = await rig.run(_LOADED, zygote=child, packages=wheels)
        await parent.destroy()
        await parent.destroy()
        await instance.wait()
        with pytest.raises(SandboxDeadError):
            await instance.sandbox.pause()
        assert not child.alive
        with pytest.raises(SandboxError):
            await pool.create_zygote(self.spec(context, "base-1", imports=()), child)

    async def test_a_dead_zygote_cannot_be_forked_from(
        self, pool: ZygotePool, context: WorkerContext, wheels: Path, rig: Rig
    ) -> None:
        zygote = await pool.create_zygote(self.spec(context, "base-1", imports=("base",)), None)
        await zygote.destroy()
        spec = rig.spec(_LOADED, zygote=zygote, packages=wheels)
        await pool.make_scratch(spec.scratch, Limits())
        with pytest.raises(SandboxError):
            await pool.create(spec)
        await pool.remove_scratch(spec.scratch)
