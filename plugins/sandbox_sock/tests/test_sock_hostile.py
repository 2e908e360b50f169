"""A zygote whose imports are hostile: what strangers' code in it can do to the worker, to its own walls and to others."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ol_sandbox_sock import sandbox
from ol_sandbox_sock.pool import SockPool
from ol_sandbox_sock.settings import SockSettings
from olcore.errors import SandboxError
from olcore.interfaces import DeathCause, SandboxPool, WorkerContext, Zygote, ZygotePool, ZygoteSpec
from olcore.testing.leaks import assert_no_leaks
from olcore.testing.rendezvous import Rig
from olcore.testing.sandbox import SandboxFixtures

pytestmark = pytest.mark.kernel

TELL = "\ndef handler(event):\n    return FOUND\n"
"""The end of a handler that returns what its import found."""

WRITE_TO_PARENTS = """
import os
FOUND = []
for pid in (1, os.getppid()):
    try:
        os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))
        FOUND.append(f"opened the memory of {pid}")
    except OSError as error:
        FOUND.append(type(error).__name__)
FOUND.append([line for line in open("/proc/1/status") if line.startswith("Seccomp:")])
"""

UNCOVER_PROC = """
import ctypes, os
os.mkdir("/tmp/proc")
fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
move_mount = lambda fd, to: ctypes.CDLL(None).syscall(429, fd, b"", -100, to, 4)
if move_mount(fd, b"/tmp/proc"):
    FOUND = "not moved"
else:
    me = int(os.readlink("/proc/self"))
    FOUND = [name for name in os.listdir("/proc") if name.isdigit() and int(name) != me]
    move_mount(fd, b"/proc")
os.close(fd)
"""

FLOOD = """
import errno, os
try:
    while True:
        os.write(1, bytes(1 << 16))
except OSError as error:
    FOUND = errno.errorcode[error.errno]
"""

SEND = """
import socket
control = socket.socket(fileno=3)
for _ in range(40):
    socket.send_fds(control, [{packet!r}], [0] * {fds})
control.detach()
FOUND = None
"""

KEEP_SILENT = """
from ol_sandbox_sock.guest import messages
send = messages.send
messages.send = lambda link, packet, fds=(): None if "ended" in packet else send(link, packet, fds)
FOUND = None
"""

RAVE = """
from ol_sandbox_sock.guest import messages
send = messages.send
def rave(link, packet, fds=()):
    send(link, {**packet, "status": "none"} if "ended" in packet else packet, fds)
messages.send = rave
FOUND = None
"""

_numbers = itertools.count()


class TestHostileZygotes(SandboxFixtures):
    @pytest.fixture
    async def pool(self, context: WorkerContext, tmp_path: Path) -> AsyncIterator[SandboxPool]:
        with assert_no_leaks(tmp_path):
            pool = SockPool(context, SockSettings(stem_cells=1, zygote_memory_mb=96))
            await pool.start()
            yield pool
            await pool.close()

    async def _zygote(self, rig: Rig, context: WorkerContext, source: str) -> Zygote:
        """Make the snapshot of a handler, which its own code is imported into."""
        assert isinstance(rig.pool, ZygotePool)
        identity = f"hostile{next(_numbers)}"
        folder = context.worker_dir / "import-cache" / identity
        folder.mkdir(parents=True)
        spec = ZygoteSpec(
            id=identity,
            folder=folder,
            sys_path=["/handler"],
            imports=["lambda_func"],
            code=rig.spec(source).code,
        )
        return await rig.pool.create_zygote(spec, None)

    async def _found(self, rig: Rig, context: WorkerContext, source: str) -> Any:
        source += TELL
        zygote = await self._zygote(rig, context, source)
        return await (await rig.run(source, zygote=zygote)).call()

    async def test_it_is_filtered_and_reaches_no_process_that_is_not(
        self, rig: Rig, context: WorkerContext
    ) -> None:
        found = await self._found(rig, context, WRITE_TO_PARENTS)
        assert found == ["PermissionError", "PermissionError", ["Seccomp:\t2\n"]]

    async def test_below_its_own_proc_no_process_of_the_parents_is_seen(
        self, rig: Rig, context: WorkerContext
    ) -> None:
        assert await self._found(rig, context, UNCOVER_PROC) == []

    async def test_what_it_prints_fills_no_disk_of_the_host(
        self, rig: Rig, context: WorkerContext
    ) -> None:
        assert await self._found(rig, context, FLOOD) == "ENOSPC"
        [output] = (context.worker_dir / "import-cache").glob("*/stdout")
        assert output.stat().st_size <= 4 << 20

    async def test_it_has_a_memory_limit_of_its_own_which_is_named(
        self, rig: Rig, context: WorkerContext
    ) -> None:
        with pytest.raises(SandboxError, match="over its limit of 96 MiB"):
            await self._zygote(rig, context, "kept = bytearray(b'x') * (200 << 20)\n")

    async def test_it_has_no_network(self, rig: Rig, context: WorkerContext) -> None:
        source = "import socket\nFOUND = [name for _, name in socket.if_nameindex()]\n"
        assert await self._found(rig, context, source) == ["lo"]

    async def test_printing_without_end_is_given_as_the_reason(
        self, rig: Rig, context: WorkerContext
    ) -> None:
        with pytest.raises(SandboxError, match="printed over 4 MiB"):
            await self._zygote(rig, context, "while True: print('x' * 1000)\n")

    async def test_descriptors_that_it_sends_do_not_pile_up_in_the_worker(
        self, rig: Rig, context: WorkerContext
    ) -> None:
        await self._found(rig, context, "FOUND = None\n")
        before = len(list(Path("/proc/self/fd").iterdir()))
        source = SEND.format(packet=b'{"imported": []}', fds=16)
        await self._found(rig, context, source)
        assert len(list(Path("/proc/self/fd").iterdir())) < before + 50

    @pytest.mark.parametrize(
        ("packet", "reason"),
        [
            (b"[" * 60000, "could not be made"),
            (b'"ready"', "could not be made"),
            (b'{"imported": [["name"]]}', "makes no sense"),
            (b'{"done": true, "private_kb": "many"}', "makes no sense"),
            (b'{"missed": [' + b",".join(b'"%d"' % n for n in range(9000)) + b"]}", None),
            (b'{"done": true}', "did not start"),
        ],
    )
    async def test_nonsense_from_it_is_an_error_like_others(
        self, rig: Rig, context: WorkerContext, packet: bytes, reason: str | None
    ) -> None:
        if reason is None:  # the same names over and over are no more names
            await self._found(rig, context, SEND.format(packet=packet, fds=0))
            return
        with pytest.raises(SandboxError, match=reason):
            await self._zygote(rig, context, SEND.format(packet=packet, fds=0))

    async def test_when_it_tells_of_no_death_an_instance_is_destroyed_all_the_same(
        self, rig: Rig, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sandbox, "_END_DEADLINE_S", 0.2)
        source = KEEP_SILENT + TELL
        zygote = await self._zygote(rig, context, source)
        instance = await rig.run(source, zygote=zygote)
        await instance.sandbox.destroy()
        assert (await instance.wait()).cause is DeathCause.LOST
        assert not Path(f"/proc/{instance.pid}").exists()

    async def test_when_it_raves_it_is_lost_and_the_worker_goes_on(
        self, rig: Rig, context: WorkerContext
    ) -> None:
        source = RAVE + TELL
        zygote = await self._zygote(rig, context, source)
        instance = await rig.run(source, zygote=zygote)
        await instance.sandbox.destroy()
        assert (await instance.wait()).cause is DeathCause.LOST
        assert not zygote.alive
        await zygote.destroy()
        assert await (await rig.run(source)).call() is None


class TestFilters(SandboxFixtures):
    @pytest.fixture
    async def pool(self, context: WorkerContext) -> AsyncIterator[SandboxPool]:
        pool = SockPool(context, SockSettings(stem_cells=0))
        await pool.start()
        yield pool
        await pool.close()

    async def test_nothing_runs_without_a_filter_that_was_lost(
        self, rig: Rig, context: WorkerContext
    ) -> None:
        (context.worker_dir / "sock/seccomp/cell.bpf").unlink()
        with pytest.raises(AssertionError, match="exited with code 70"):
            await rig.run("def handler(event):\n    pass\n")
