"""Keeps one folder for each installed wheel, shared by every worker of the cluster.

``<packages>/<name>-<version>-<tag>/`` appears by a rename and is whole from then on. What the store needs for itself is
in folders whose names begin with a dot, closed to sandboxes::

    .wheels/<pin>.<guest>.json   which folder a pin became, for one kind of guest
    .wheels/<pin>.<guest>.lock   held (flock) while that wheel is being installed
    .tmp/<pin>.<guest>/          the installation in progress; whoever holds the lock may clear it
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from olcore.errors import PackagesError
from olcore.handlers.packages import contents
from olcore.handlers.packages.files import write_whole
from olcore.handlers.packages.uv import Pin
from olcore.interfaces import GuestInfo, Wheel

Install = Callable[[Pin, Path], Awaitable[None]]
CompileBytecode = Callable[[Path], Awaitable[None]]

_LOCK_POLL_S = 0.05


class Store:
    """The wheels in one ``packages`` folder.

    Args:
        folder: The ``packages`` folder; made when it is not there.
        guest: What the wheels are for.
        install: Installs one pin into a folder.
        compile_bytecode: Compiles what is below a folder, by the guest's own interpreter; must not fail for bad sources.
        timeout_s: How long to wait for another worker that installs the same wheel.
    """

    def __init__(
        self,
        folder: Path,
        *,
        guest: GuestInfo,
        install: Install,
        compile_bytecode: CompileBytecode,
        timeout_s: float,
    ) -> None:
        self.folder = folder
        self._install = install
        self._compile = compile_bytecode
        self._timeout_s = timeout_s
        self._kind = guest_key(guest)
        self._records = folder / ".wheels"
        self._temporary = folder / ".tmp"

    async def get(self, pin: Pin) -> Wheel:
        """Return the wheel of *pin*, and install it when it is not there yet.

        Raises:
            PackagesError: It cannot be installed; nothing of it is left.
        """
        return self.find(pin) or await self._make(pin)

    def find(self, pin: Pin) -> Wheel | None:
        """Return the wheel of *pin* if it is installed."""
        try:
            wheel = msgspec.json.decode(self._record(pin).read_bytes(), type=Wheel)
        except (OSError, msgspec.DecodeError):
            return None
        return wheel if (self.folder / wheel.folder).is_dir() else None

    async def _make(self, pin: Pin) -> Wheel:
        for folder in (self.folder, self._records, self._temporary):
            folder.mkdir(
                mode=0o755 if folder is self.folder else 0o700, parents=True, exist_ok=True
            )
        async with _locked(self._record(pin).with_suffix(".lock"), self._timeout_s):
            # Somebody else may have installed it while we waited.
            found = self.find(pin)
            if found is not None:
                return found
            temporary = self._temporary / self._record(pin).stem
            await asyncio.to_thread(shutil.rmtree, temporary, ignore_errors=True)
            try:
                await self._install(pin, temporary)
                return await self._place(pin, temporary)
            finally:
                await asyncio.to_thread(shutil.rmtree, temporary, ignore_errors=True)

    async def _place(self, pin: Pin, temporary: Path) -> Wheel:
        (temporary / ".lock").unlink(missing_ok=True)  # uv's own, of use while it installs
        wheel = await asyncio.to_thread(self._look, pin, temporary)
        final = self.folder / wheel.folder
        await self._compile(temporary)
        await asyncio.to_thread(_open_to_all, temporary)
        try:
            temporary.rename(final)
        except OSError:
            if not final.is_dir():
                raise
            # Another kind of guest has the same wheel. Its interpreter's bytecode stands beside ours, file by file.
            await self._compile(final)
            await asyncio.to_thread(_open_to_all, final)
        write_whole(self._record(pin), msgspec.json.encode(wheel))
        return wheel

    def _look(self, pin: Pin, temporary: Path) -> Wheel:
        name = f"{pin.name.replace('-', '_')}-{pin.version}-{contents.tag(temporary)}"
        there = self.folder / name
        if there.is_dir() and contents.identity(there) != contents.identity(temporary):
            # Two indexes, or an index that replaced a file: the handlers that have the other one keep it.
            name = f"{name}-{contents.identity(temporary)}"
        return Wheel(
            folder=name, modules=contents.modules(temporary), pth=contents.has_pth(temporary)
        )

    def _record(self, pin: Pin) -> Path:
        digest = hashlib.sha256("\n".join([str(pin), *pin.hashes]).encode()).hexdigest()[:12]
        return self._records / f"{pin.name}-{pin.version}.{digest}.{self._kind}.json"


def installed(packages: Path) -> Sequence[Path]:
    """List the folders of installed wheels, sorted by name."""
    if not packages.is_dir():
        return []
    return sorted(
        entry for entry in packages.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def remove(folder: Path) -> None:
    """Remove one installed wheel: out of sight by one rename, then away."""
    grave = folder.parent / ".tmp" / f"removed-{folder.name}"
    grave.parent.mkdir(mode=0o700, exist_ok=True)
    shutil.rmtree(grave, ignore_errors=True)
    folder.rename(grave)
    shutil.rmtree(grave)


def guest_key(guest: GuestInfo) -> str:
    """Name the kind of guest that a choice of wheels is good for."""
    feature = "".join(guest.python.split(".")[:2])
    libc = guest.libc.replace(" ", "")
    return f"{guest.implementation}{feature}-{guest.machine}-{libc}"


@asynccontextmanager
async def _locked(file: Path, timeout_s: float) -> AsyncIterator[None]:
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            async with asyncio.timeout(timeout_s):
                await _flock(fd)
        except TimeoutError as error:
            raise PackagesError(
                f"somebody else has been installing {file.stem!r} for {timeout_s:g} s"
            ) from error
        yield
    finally:
        os.close(fd)


async def _flock(fd: int) -> None:
    # Asked again and again, because a thread that waits inside flock could neither be cancelled nor given up.
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(_LOCK_POLL_S)
        else:
            return


def _open_to_all(folder: Path) -> None:
    # The instance reads with a uid of its own, whatever umask the worker was started with.
    for path in (folder, *folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            path.chmod(0o755)
        elif stat.S_ISREG(mode):
            path.chmod(0o755 if mode & 0o100 else 0o644)
