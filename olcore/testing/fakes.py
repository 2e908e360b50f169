"""Fakes of the backends, held to the same contract suites: what core tests run on instead of mocks."""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import olcore.guest
from olcore.errors import HandlerNotFoundError, RegistryError, SandboxDeadError, SandboxError
from olcore.interfaces import (
    Death,
    DeathCause,
    GuestInfo,
    HandlerVersion,
    Limits,
    Registry,
    Sandbox,
    SandboxPool,
    SandboxSpec,
    Usage,
)
from olcore.testing.processes import live, status_of

_GUEST = """
import sys
sys.path.insert(0, sys.argv[1])
from olguest.server import main
main(host=sys.argv[2], handler=sys.argv[3])
"""


class FakeSandbox(Sandbox):
    """The real guest as a plain process group: no isolation, no limits, and no root needed.

    A process of the handler that starts a session of its own gets away; a real backend keeps hold of it.
    """

    def __init__(self, spec: SandboxSpec, process: subprocess.Popen[bytes]) -> None:
        self.id = spec.id
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._death: asyncio.Future[Death] = self._loop.create_future()
        self._destroyed = False
        self._pidfd = os.pidfd_open(process.pid)
        self._loop.add_reader(self._pidfd, self._ended)

    async def wait(self) -> Death:
        return await asyncio.shield(self._death)

    async def pause(self) -> None:
        self._check_alive()
        os.killpg(self._process.pid, signal.SIGSTOP)
        # SIGSTOP is only sent by then: waitid tells when every thread has stopped. In a thread, for it may wait for one
        # that is inside a system call.
        await asyncio.to_thread(
            os.waitid, os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT
        )

    async def resume(self) -> None:
        self._check_alive()
        os.killpg(self._process.pid, signal.SIGCONT)

    async def usage(self) -> Usage:
        self._check_alive()
        return _usage(self._process.pid)

    async def destroy(self) -> None:
        self._destroyed = True
        if not self._death.done():
            os.killpg(self._process.pid, signal.SIGKILL)
        await self.wait()

    def _check_alive(self) -> None:
        if self._death.done():
            raise SandboxDeadError(f"sandbox {self.id!r} is dead: {self._death.result()}")

    def _ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._burial = self._loop.create_task(self._bury())

    async def _bury(self) -> None:
        # As in a pid namespace, the first process takes the others along. It stays a zombie meanwhile, so that its number,
        # which is the session's, cannot come to mean another.
        while members := _members(self._process.pid):
            for pid in members:
                await _kill(pid)
        code = self._process.wait()
        if self._destroyed:
            death = Death(cause=DeathCause.DESTROYED)
        elif code < 0:
            death = Death(cause=DeathCause.SIGNALED, signal=signal.Signals(-code).name)
        else:
            death = Death(cause=DeathCause.EXITED, exit_code=code)
        self._death.set_result(death)


class FakePool(SandboxPool):
    """Sandboxes that are plain processes of this user; for tests of all that stands above a sandbox.

    Set ``refuse`` to an error, and ``create`` raises it, as a pool does whose engine is away.
    """

    def __init__(self, interpreter: str = sys.executable) -> None:
        self.refuse: SandboxError | None = None
        self.specs: list[SandboxSpec] = []
        """Every spec that ``create`` was given, in order."""
        self._interpreter = interpreter
        self._undo = ExitStack()
        self._guest_parent = ""
        self._sandboxes: list[FakeSandbox] = []

    async def start(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="ol-fake-")
        self._guest_parent = self._undo.enter_context(folder)
        # Inside a real sandbox the guest is the top-level package olguest; the link gives it the same name here.
        (Path(self._guest_parent) / "olguest").symlink_to(Path(olcore.guest.__file__).parent)

    async def close(self) -> None:
        for sandbox in self._sandboxes:
            await sandbox.destroy()
        self._undo.close()

    async def make_scratch(self, folder: Path, limits: Limits) -> None:
        del limits  # a plain folder has no bound
        folder.mkdir()
        # Not as an argument of mkdir, which the umask cuts.
        folder.chmod(0o1777)

    async def remove_scratch(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    async def create(self, spec: SandboxSpec) -> Sandbox:
        self.specs.append(spec)
        if self.refuse is not None:
            raise self.refuse
        if not spec.code.is_dir():
            raise SandboxError(f"the code folder {str(spec.code)!r} does not exist")
        process = self._spawn(spec)
        sandbox = FakeSandbox(spec, process)
        self._sandboxes.append(sandbox)
        return sandbox

    async def probe(self) -> GuestInfo:
        return GuestInfo(
            python=platform.python_version(),
            implementation=sys.implementation.name,
            machine=os.uname().machine,
            libc=" ".join(platform.libc_ver()).strip() or "musl",
        )

    def _spawn(self, spec: SandboxSpec) -> subprocess.Popen[bytes]:
        guest = [self._guest_parent, str(spec.scratch), str(spec.code)]
        with ExitStack() as files:
            stdout, stderr = (
                files.enter_context(_appended(spec.scratch / name)) for name in ("stdout", "stderr")
            )
            return subprocess.Popen(
                [self._interpreter, "-I", "-S", "-B", "-c", _GUEST, *guest],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={"PATH": os.defpath},
                start_new_session=True,
            )


class FakeRegistry(Registry):
    """Handlers in memory; ``put`` and ``drop`` are the operator's hand.

    Set ``refuse`` to an error, and every call raises it.
    """

    def __init__(self, *, remote: bool = False) -> None:
        self.remote = remote
        self.refuse: Exception | None = None
        self.lookups = 0
        """How often ``lookup`` was called."""
        self._handlers: dict[str, tuple[HandlerVersion, dict[str, str]]] = {}

    def put(self, name: str, files: str | Mapping[str, str]) -> HandlerVersion:
        """Store a handler, and say which version that made.

        Args:
            name: The handler's name.
            files: Text by path; a plain text stands for ``lambda_func.py``.
        """
        texts = {"lambda_func.py": files} if isinstance(files, str) else dict(files)
        digest = hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:16]
        version = HandlerVersion(name=name, version=digest)
        self._handlers[name] = (version, texts)
        return version

    def drop(self, name: str) -> None:
        """Forget a handler."""
        del self._handlers[name]

    async def start(self) -> None:
        """Nothing to prepare."""

    async def close(self) -> None:
        """Nothing to undo."""

    async def lookup(self, name: str) -> HandlerVersion:
        self.lookups += 1
        return self._found(name)[0]

    async def pull(self, version: HandlerVersion, target: Path) -> HandlerVersion:
        newest, texts = self._found(version.name)
        for path, text in texts.items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_text(text)
        return newest

    async def names(self) -> Sequence[HandlerVersion]:
        if self.refuse is not None:
            raise self.refuse
        return [version for _, (version, _) in sorted(self._handlers.items())]

    async def publish(
        self,
        name: str,  # noqa: ARG002
        bundle: Path,  # noqa: ARG002
        if_version: str | None = None,  # noqa: ARG002
    ) -> HandlerVersion:
        raise RegistryError("a FakeRegistry is filled with put()")

    async def remove(self, name: str, if_version: str | None = None) -> None:  # noqa: ARG002
        raise RegistryError("a FakeRegistry is emptied with drop()")

    def _found(self, name: str) -> tuple[HandlerVersion, dict[str, str]]:
        if self.refuse is not None:
            raise self.refuse
        try:
            return self._handlers[name]
        except KeyError:
            raise HandlerNotFoundError(f"no handler {name!r} in the registry") from None


@contextmanager
def _appended(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
    try:
        yield fd
    finally:
        os.close(fd)


def _members(session: int) -> list[int]:
    """Every live process of the session: what the handler started, and the leader."""
    return [pid for pid, fields in live().items() if int(fields[3]) == session]


async def _kill(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _usage(session: int) -> Usage:
    memory = ticks = processes = 0
    for pid in _members(session):
        with suppress(OSError):
            fields = status_of(pid)
            memory += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
            ticks += int(fields[11]) + int(fields[12])
            processes += int(fields[17])
    return Usage(memory_bytes=memory, cpu_s=ticks / os.sysconf("SC_CLK_TCK"), processes=processes)
