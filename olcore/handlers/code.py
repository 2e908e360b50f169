"""Says which code of a handler is served: the registry's newest, pulled once, or what there is while that is away.

Which version is the newest is asked of the registry for every request, or, when that costs I/O, at most once within
``registry_cache_ms``. Answers are numbered by when they were asked for, so that a slow answer never turns a handler back
to code that is older than what it has served.

While a remote registry is *away*, it is asked as seldom, and nobody who can be served from the cache waits for it: what
it has new is looked up and pulled before any request is told of it.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from olcore.errors import (
    HandlerNotFoundError,
    OlcoreError,
    RegistryUnavailableError,
)
from olcore.handlers import settings as handler_settings
from olcore.handlers.code_folder import CodeFolder, check_version
from olcore.handlers.settings import HandlerSettings
from olcore.interfaces import HandlerVersion, Wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from collections.abc import Set as AbstractSet

    from olcore.handlers.options import Options
    from olcore.interfaces import Registry

log = logging.getLogger(__name__)

_Value = TypeVar("_Value")

_RETRY_AFTER_S = 5.0
_MOST_KNOWN = 10_000


class PackageInstaller(Protocol):
    """Installs what a handler asks for in ``packages.txt``."""

    async def prepare(self, code: Path) -> Wanted:
        """Install the packages of the handler in the folder *code*, and say which wheels those are.

        Raises:
            PackagesError: They cannot be resolved or installed; remembered for a while, so that asking again is cheap.
        """

    async def folder(self, wanted: Wanted) -> Path:
        """Return the folder to map to ``/packages`` for a handler that wants *wanted*."""

    async def compile(self, code: Path) -> None:
        """Put bytecode beside the sources in *code*, which may be in use; never fails."""


class Code(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One version of one handler, ready to be served."""

    version: HandlerVersion
    folder: Path
    settings: HandlerSettings
    wanted: Wanted
    packages: Path | None
    """The folder mapped to ``/packages``."""


class _Pulled(msgspec.Struct, frozen=True):
    """A version that is in the worker's folder."""

    version: HandlerVersion
    began_s: float
    is_new: bool


class _Known:
    """What is known about one handler."""

    __slots__ = ("code", "code_asked", "is_away", "missing", "until_s", "version", "version_asked")

    def __init__(self) -> None:
        self.version: HandlerVersion | None = None
        self.version_asked = 0
        self.code: Code | None = None
        self.code_asked = 0
        self.is_away = False
        """Whether the registry could not be asked the last time, so that nobody knows whether this is the newest."""
        self.until_s = 0.0
        """Until when a remote registry is not asked again."""
        self.missing: HandlerNotFoundError | None = None


class CodeCache:
    """The code of every handler that was asked for.

    Args:
        registry: Where code comes from; started.
        packages: Installs what handlers want; ``None`` where handlers have the standard library only.
        options: The bounds for handlers' settings, and how long a remote registry's answer holds.
        folder: The cache's own.
        pulled: Told a version that has been pulled, and how many seconds that took.
    """

    def __init__(
        self,
        registry: Registry,
        packages: PackageInstaller | None,
        options: Options,
        folder: Path,
        pulled: Callable[[HandlerVersion, float], None],
    ) -> None:
        self._registry = registry
        self._packages = packages
        self._options = options
        self._folder = CodeFolder(folder)
        self._pulled = pulled
        self._is_remote = registry.remote
        self._cache_s = options.registry_cache_ms / 1000
        self._timeout_s = options.registry_timeout_s
        self._known: dict[str, _Known] = {}
        self._flights: dict[object, asyncio.Task[Any]] = {}
        self._chores: set[asyncio.Task[Any]] = set()
        self._asked = 0
        self.stale_served = 0
        """How many requests got code that the registry, being away, could not confirm."""

    def start(self) -> None:
        """Make the folder, and clear what a crash left half done."""
        self._folder.start()

    async def close(self) -> None:
        """Give up what is under way; idempotent."""
        tasks = [*self._flights.values(), *self._chores]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def at_hand(self, name: str) -> Code | None:
        """Return the code of *name* if it is known to be the newest without waiting: nearly always, for a local registry."""
        known = self._known.get(name)
        if known is None or known.code is None or self._is_remote:
            return None
        version = self._registry.peek(name)
        is_same = version is not None and version.version == known.code.version.version
        return known.code if is_same else None

    async def current(self, name: str) -> Code:
        """Return the newest code of *name*, pulling it when it is new.

        Raises:
            HandlerNotFoundError: There is no such handler.
            HandlerInvalidError: What is there is no handler.
            PackagesError: Its packages cannot be installed.
            RegistryUnavailableError: The registry is away, and no code is cached.
        """
        began_s = time.monotonic()
        known = self._known.get(name)
        if not self._is_remote:
            self._asked = asked = self._asked + 1
            version = await self._looked_up(name, asked)
            known = self._known[name]
        elif known is not None and began_s < known.until_s:
            if known.missing is not None:
                raise again(known.missing)
            version, asked = known.version, known.version_asked
        else:
            known = await self._asked_remote(name, known)
            version, asked = known.version, known.version_asked
        code = known.code
        if code is None or (version is not None and code.version.version != version.version):
            if version is None:
                raise HandlerNotFoundError(f"no handler {name!r}")
            code = await self._fetched(known, version, asked, began_s)
        self.stale_served += known.is_away
        return code

    def tidy(self, name: str, in_use: AbstractSet[str]) -> None:
        """Remove the versions of *name* on disk that are neither the newest nor in *in_use*."""
        known = self._known.get(name)
        newest = known.code if known is not None else None
        is_gone = known is None or known.missing is not None
        if (newest is None and not is_gone) or self._is_pulling(name):
            return
        keep = {*in_use, newest.version.version} if newest is not None else in_use
        for trash in self._folder.set_aside(name, keep):
            self._chore(asyncio.to_thread(shutil.rmtree, trash))

    def _is_pulling(self, name: str) -> bool:
        return any(isinstance(key, tuple) and key[0] == name for key in self._flights)

    def _chore(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def _asked_remote(self, name: str, known: _Known | None) -> _Known:
        self._asked = asked = self._asked + 1
        flight = self._flight(name, lambda: self._looked_up(name, asked))
        if known is not None and known.is_away and known.code is not None:
            # The last attempt failed: this one may take as long to fail, so nobody waits for it.
            return known
        await _joined(flight)
        return self._known[name]

    async def _looked_up(self, name: str, asked: int) -> HandlerVersion | None:
        began_s = time.monotonic()
        try:
            version = await self._registry.lookup(name)
            known = self._known.get(name)
            if known is None or known.version is None or known.version.version != version.version:
                check_version(version)
                if known is not None and known.is_away and self._is_remote:
                    version = await self._pulled_ahead(known, version, asked)
        except HandlerNotFoundError as error:
            self._missed(name, error)
            raise
        except RegistryUnavailableError as error:
            return self._served_stale(name, error)
        known = self._known.setdefault(name, _Known())
        if asked < known.version_asked:
            return known.version
        if known.is_away:
            log.info("the registry has answered again for %r", name)
        known.version = version
        known.version_asked = asked
        known.missing = None
        known.is_away = False
        # From when it was asked: the answer may be as old as that.
        known.until_s = began_s + self._cache_s
        return version

    async def _pulled_ahead(
        self, known: _Known, version: HandlerVersion, asked: int
    ) -> HandlerVersion:
        if known.code is None:
            return version
        try:
            code = await _joined(self._fetching(version)[1])
        except RegistryUnavailableError:
            raise
        except OlcoreError:
            return version  # it is no fault of the registry's, and the next request meets it again
        known.code, known.code_asked = code, asked
        return code.version

    def _missed(self, name: str, error: HandlerNotFoundError) -> None:
        if not self._is_remote:
            self._known.pop(name, None)
            return
        if len(self._known) > _MOST_KNOWN:  # somebody tries names
            self._known = {key: value for key, value in self._known.items() if not value.missing}
        known = self._known.setdefault(name, _Known())
        known.version = known.code = None
        known.missing = error
        known.is_away = False
        known.until_s = time.monotonic() + self._cache_s

    def _served_stale(self, name: str, error: RegistryUnavailableError) -> HandlerVersion:
        known = self._known.get(name)
        if known is not None and known.code is not None:
            version: HandlerVersion | None = known.code.version
        elif known is not None and known.missing is not None:
            version = None  # what was removed does not rise again from the disk
        else:
            newest = self._folder.newest(name)
            version = HandlerVersion(name=name, version=newest) if newest else None
        if version is None:
            error.retry_after_s = error.retry_after_s or _RETRY_AFTER_S
            raise error
        self._go_on(self._known.setdefault(name, _Known()), version, error)
        return version

    def _go_on(
        self, known: _Known, version: HandlerVersion, error: RegistryUnavailableError
    ) -> None:
        """Serve the cached *version* until the registry is asked again."""
        level = logging.DEBUG if known.is_away else logging.WARNING
        log.log(level, "%s: serving cached version %s of %r", error, version.version, version.name)
        known.version = version
        known.is_away = True
        known.until_s = time.monotonic() + self._cache_s

    async def _fetched(
        self, known: _Known, version: HandlerVersion, asked: int, began_s: float
    ) -> Code:
        try:
            pull, flight = self._fetching(version)
            if pull is not None and self._is_remote:
                await self._in_time(pull, version.name, began_s)
            code = await _joined(flight)
        except RegistryUnavailableError as error:
            if known.code is None:
                error.retry_after_s = error.retry_after_s or _RETRY_AFTER_S
                raise
            self._go_on(known, known.code.version, error)
            return known.code
        if asked < known.code_asked and known.code is not None:
            return known.code  # what was asked for later came earlier, and is newer
        if known.code is None or known.code.version.version != code.version.version:
            known.code = code
        if code.version.version != version.version:
            # It changed between lookup and pull; no answer from before the pull may undo that.
            self._asked = asked = self._asked + 1
            known.version, known.version_asked = code.version, asked
        known.code_asked = asked
        return known.code

    def _fetching(
        self, version: HandlerVersion
    ) -> tuple[asyncio.Task[_Pulled] | None, asyncio.Task[Code]]:
        """Begin to pull *version* and to make code of it, or find who does; no pull when that is over."""
        key = version.name, version.version
        flight = self._flights.get(key)
        if flight is not None:
            return self._flights.get((*key, "pull")), flight
        pull = self._flight((*key, "pull"), lambda: self._pull(version))
        return pull, self._flight(key, lambda: self._fetch(pull))

    async def _in_time(self, pull: asyncio.Task[_Pulled], name: str, began_s: float) -> None:
        # What the lookup has taken counts, so that no request waits longer for the registry. The pull goes on: a big
        # handler on a slow disk comes later, and not never.
        left_s = began_s + self._timeout_s - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, left_s)):
                await _joined(pull)
        except TimeoutError as error:
            raise RegistryUnavailableError(
                f"handler {name!r} is being pulled, and has not come within {self._timeout_s:g} s",
                hint="registry_timeout_s says how long a request waits for it",
            ) from error

    async def _pull(self, version: HandlerVersion) -> _Pulled:
        began_s = time.monotonic()
        if self._folder.find(version) is not None:
            return _Pulled(version, began_s, is_new=False)
        async with self._folder.arriving() as arriving:
            pulled = await self._registry.pull(version, arriving)
            check_version(pulled)
            self._folder.put(pulled, arriving)
        return _Pulled(pulled, began_s, is_new=True)

    async def _fetch(self, pull: asyncio.Task[_Pulled]) -> Code:
        pulled = await _joined(pull)
        version = pulled.version
        folder = self._folder.path(version)
        read = await asyncio.to_thread(handler_settings.read, folder, self._options)
        wanted = Wanted(handler=version.name, wheels=())
        packages = None
        if self._packages is not None:
            wanted = await self._packages.prepare(folder)
            packages = await self._packages.folder(wanted)
            # Beside the first request, not before it: what this saves later cold starts would be that one's wait.
            self._chore(self._packages.compile(folder))
        if pulled.is_new:
            self._pulled(version, time.monotonic() - pulled.began_s)
        return Code(version=version, folder=folder, settings=read, wanted=wanted, packages=packages)

    def _flight(
        self, key: object, work: Callable[[], Coroutine[Any, Any, _Value]]
    ) -> asyncio.Task[_Value]:
        """Start *work*, unless the same is under way."""
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.ensure_future(work())
            self._flights[key] = flight
            flight.add_done_callback(lambda done: self._landed(key, done))
        return flight

    def _landed(self, key: object, flight: asyncio.Task[Any]) -> None:
        self._flights.pop(key, None)
        if not flight.cancelled():
            flight.exception()  # whoever waited was told; when nobody did, nobody needs to be


async def _joined(flight: asyncio.Task[_Value]) -> _Value:
    try:
        return await asyncio.shield(flight)
    except OlcoreError as error:
        raise again(error) from error


def again(error: OlcoreError) -> OlcoreError:
    """Copy an error that several requests are told, because each adds its own details."""
    copy = type(error)(
        error.message,
        hint=error.hint,
        retry_after_s=error.retry_after_s,
        details=dict(error.details),
    )
    copy.__cause__ = error
    return copy
