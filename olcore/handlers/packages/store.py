"""Keeps one folder for each installed wheel, shared by every worker of the cluster.

``<packages>/<name>-<version>-<tag>/`` appears by a rename and is whole from then on. What the store needs for itself is
in folders whose names begin with a dot, closed to sandboxes::

    .wheels/<pin>.<guest>.json   which folder a pin became, for one kind of guest
    .wheels/<pin>.<guest>.lock   held (flock) while that wheel is being installed
    .tmp/<pin>.<guest>/          the installation in progress; whoever holds the lock may clear it
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import stat
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from olcore.errors import PackagesError
from olcore.handlers.packages import contents
from olcore.handlers.packages.files import locked, write_whole
from olcore.handlers.packages.uv import Pin
from olcore.interfaces import GuestInfo, Wheel

Install = Callable[[Pin, Path], Awaitable[None]]
CompileBytecode = Callable[[Path], Awaitable[None]]

RECORDS = ".wheels"
TEMPORARY = ".tmp"


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
        self._records = folder / RECORDS
        self._temporary = folder / TEMPORARY

    async def get(self, pin: Pin) -> Wheel:
        """Return the wheel of *pin*, and install it when it is not there yet.

        Raises:
            PackagesError: It cannot be installed; nothing of it is left.
        """
        return self.find(pin) or await self._make(pin)

    def find(self, pin: Pin) -> Wheel | None:
        """Return the wheel of *pin* if it is installed."""
        return _wheel_of(self._record(pin), self.folder)

    async def _make(self, pin: Pin) -> Wheel:
        for folder in (self.folder, self._records, self._temporary):
            folder.mkdir(
                mode=0o755 if folder is self.folder else 0o700, parents=True, exist_ok=True
            )
        lock = self._record(pin).with_suffix(".lock")
        try:
            async with locked(lock, self._timeout_s):
                # Somebody else may have installed it while we waited.
                return self.find(pin) or await self._install_and_place(pin)
        except TimeoutError as error:
            raise PackagesError(
                f"somebody else has been installing {pin} for {self._timeout_s:g} s"
            ) from error

    async def _install_and_place(self, pin: Pin) -> Wheel:
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
        # Before too, because it may be compiled in a sandbox, which reads it with a uid of its own.
        await asyncio.to_thread(_open_to_all, temporary)
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


def drop_records(packages: Path) -> None:
    """Forget the records of wheels that are no longer there."""
    for record in (packages / RECORDS).glob("*.json"):
        if _wheel_of(record, packages) is None:
            record.unlink(missing_ok=True)


def guest_key(guest: GuestInfo) -> str:
    """Name the kind of guest that a choice of wheels is good for."""
    feature = "".join(guest.python.split(".")[:2])
    libc = guest.libc.replace(" ", "")
    return f"{guest.implementation}{feature}-{guest.machine}-{libc}"


def _wheel_of(record: Path, packages: Path) -> Wheel | None:
    try:
        wheel = msgspec.json.decode(record.read_bytes(), type=Wheel)
    except (OSError, msgspec.DecodeError):
        return None
    return wheel if (packages / wheel.folder).is_dir() else None


def _open_to_all(folder: Path) -> None:
    # The instance reads with a uid of its own, whatever umask the worker was started with.
    for path in (folder, *folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            path.chmod(0o755)
        elif stat.S_ISREG(mode):
            path.chmod(0o755 if mode & 0o100 else 0o644)
