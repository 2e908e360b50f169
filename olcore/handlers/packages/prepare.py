"""Prepares the wheels of a handler: reads its file, resolves it once, installs what is missing.

Whoever asks for the same content while it is being prepared waits for the same work; a caller that gives up does not
stop it. A failure is remembered for a while, so that a burst of requests costs one run of uv; another content of the
file is another piece of work, and starts at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from olcore.errors import PackagesError
from olcore.handlers.packages import contents, requirements
from olcore.handlers.packages.files import locked
from olcore.handlers.packages.locks import Locks, gate
from olcore.handlers.packages.private import PrivateFolders
from olcore.handlers.packages.store import CompileBytecode, Store
from olcore.handlers.packages.uv import Pin, Uv
from olcore.interfaces import GuestInfo, Wanted, Wheel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from olcore.handlers.packages.options import PackageOptions

_log = logging.getLogger(__name__)

_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one piece of work is."""

    done: int
    total: int
    """0 while it is being resolved."""
    what: str
    """Such as ``resolving`` or ``numpy==2.1.0``."""


@dataclass(frozen=True, slots=True)
class _Failure:
    error: PackagesError
    until_s: float


class Packages:
    """The packages of one worker's handlers.

    Args:
        packages_dir: One folder for each wheel; shared by the workers of a cluster; made when needed.
        lock_dir: Where the lock files are kept; made when needed.
        guest: What the wheels must fit.
        options: Where packages come from.
        compile_bytecode: Compiles a folder by the guest's own interpreter; never fails.
        on_progress: Told how far the work is, on the event loop.
    """

    def __init__(
        self,
        *,
        packages_dir: Path,
        lock_dir: Path,
        guest: GuestInfo,
        options: PackageOptions,
        compile_bytecode: CompileBytecode,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self._guest = guest
        self._options = options
        self._on_progress = on_progress or _log_progress
        self._lock_dir = lock_dir
        self._locks = Locks(lock_dir, guest, options)
        self._compile = compile_bytecode
        self._store = Store(
            packages_dir,
            guest=guest,
            install=self._install,
            compile_bytecode=compile_bytecode,
            timeout_s=options.timeout_s,
        )
        self._packages_dir = packages_dir
        self._private = PrivateFolders(packages_dir) if options.private else None
        self._running: dict[str, asyncio.Task[tuple[Wheel, ...]]] = {}
        self._failures: dict[str, _Failure] = {}
        self._uv: Uv | None = None

    async def prepare(self, code: Path, *, handler: str = "") -> Wanted:
        """Put in place what the handler in *code* asks for, and say what that is.

        Args:
            code: The handler's folder.
            handler: Its name; empty means the name of the folder above, as in the code cache.

        Raises:
            PackagesError: The file is wrong, or its packages cannot be had; holds uv's reason.
        """
        wanted = await asyncio.to_thread(requirements.read, code)
        name = handler or code.parent.name
        wheels: tuple[Wheel, ...] = ()
        if wanted:
            async with self._installing():
                wheels = await self.get(wanted)
                await asyncio.to_thread(self._locks.use, name, wheels)
        else:
            await asyncio.to_thread(self._locks.use, name, wheels)
        own = await asyncio.to_thread(contents.top_level, code)
        return Wanted(handler=name, wheels=wheels, modules=own)

    async def compile(self, code: Path) -> None:
        """Put bytecode beside the sources of the handler in *code*, unless it has some or is quicker without; never fails."""
        try:
            is_worth_it = await asyncio.to_thread(contents.is_worth_compiling, code)
        except FileNotFoundError:
            return  # replaced by newer code meanwhile
        if is_worth_it:
            await self._compile(code)

    async def get(self, wanted: Sequence[str]) -> tuple[Wheel, ...]:
        """Put *wanted* in place with all that it needs; an empty sequence needs nothing.

        Raises:
            PackagesError: It cannot be had; holds uv's reason.
        """
        if not wanted:
            return ()
        digest = self._locks.digest(wanted)
        task = self._running.get(digest)
        if task is None:
            self._raise_remembered(digest)
            task = asyncio.create_task(self._get(digest, wanted), name=f"packages {digest}")
            self._running[digest] = task
            task.add_done_callback(lambda done: self._ended(digest, done))
        # Shielded: one caller that hangs up must not undo the work for the next.
        return await asyncio.shield(task)

    async def folder(self, wanted: Wanted) -> Path:
        """Return the folder to map to ``/packages`` for a handler: everybody's, or one with its own wheels only."""
        if self._private is None:
            return self._packages_dir
        return await asyncio.to_thread(self._private.make, [one.folder for one in wanted.wheels])

    async def close(self) -> None:
        """Stop what is being installed; idempotent, never raises."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    @asynccontextmanager
    async def _installing(self) -> AsyncIterator[None]:
        # Until it is noted that the handler uses its wheels, nobody may find them unused and remove them.
        try:
            async with locked(gate(self._lock_dir), self._options.timeout_s, shared=True):
                yield
        except TimeoutError as error:
            raise PackagesError("the removal of unused packages does not come to an end") from error

    async def _get(self, digest: str, wanted: Sequence[str]) -> tuple[Wheel, ...]:
        try:
            pins = await self._resolve(digest, wanted)
            missing = [pin for pin in pins if self._store.find(pin) is None]
            if missing:
                await self._fetch(missing)
            return tuple([await self._store.get(pin) for pin in pins])
        except OSError as error:
            raise PackagesError(f"cannot install {', '.join(wanted)}: {error}") from error

    async def _resolve(self, digest: str, wanted: Sequence[str]) -> tuple[Pin, ...]:
        pins = self._locks.read(digest)
        if pins is None:
            self._on_progress(Progress(0, 0, f"resolving {', '.join(wanted)}"))
            pins = tuple(await self._tool().resolve(wanted))
            self._locks.write(digest, wanted, pins)
        return pins

    async def _fetch(self, missing: Sequence[Pin]) -> None:
        places = asyncio.Semaphore(_AT_ONCE)
        done = 0

        async def one(pin: Pin) -> None:
            nonlocal done
            async with places:
                await self._store.get(pin)
            done += 1
            self._on_progress(Progress(done, len(missing), str(pin)))

        try:
            async with asyncio.TaskGroup() as group:
                for pin in missing:
                    group.create_task(one(pin))
        except ExceptionGroup as several:
            # The first says enough; the others are likely to say the same of their own wheel.
            raise several.exceptions[0] from several

    async def _install(self, pin: Pin, folder: Path) -> None:
        await self._tool().install(pin, folder)

    def _tool(self) -> Uv:
        # Made late: a guest that no wheel fits is no trouble for handlers that want none.
        if self._uv is None:
            self._uv = Uv(self._options, self._guest)
        return self._uv

    def _raise_remembered(self, digest: str) -> None:
        failure = self._failures.get(digest)
        if failure is None:
            return
        left_s = failure.until_s - time.monotonic()
        if left_s <= 0:
            del self._failures[digest]
            return
        error = failure.error
        raise PackagesError(
            error.message, hint=error.hint, retry_after_s=left_s, details=error.details
        )

    def _ended(self, digest: str, task: asyncio.Task[tuple[Wheel, ...]]) -> None:
        del self._running[digest]
        error = None if task.cancelled() else task.exception()
        if isinstance(error, PackagesError):
            now_s = time.monotonic()
            error.retry_after_s = self._options.retry_s
            for old in [key for key, one in self._failures.items() if one.until_s <= now_s]:
                del self._failures[old]
            self._failures[digest] = _Failure(error, now_s + self._options.retry_s)


def _log_progress(progress: Progress) -> None:
    if progress.total:
        _log.info("installed %s (%d of %d)", progress.what, progress.done, progress.total)
    else:
        _log.info("packages: %s", progress.what)
