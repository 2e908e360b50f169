"""Keeps the versions of handlers' code that this worker serves, each a folder that is put in place by one rename.

Which version is the newest is asked of the registry for every request, or, when that costs I/O, at most once within
``registry_cache_ms``. Answers are numbered by when they were asked for, so that a slow answer never turns a handler back
to code that is older than what it has served.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from olcore.errors import (
    HandlerNotFoundError,
    OlcoreError,
    RegistryError,
    RegistryUnavailableError,
)
from olcore.handlers import settings as handler_settings
from olcore.handlers.settings import HandlerSettings
from olcore.interfaces import HandlerVersion, Wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from collections.abc import Set as AbstractSet

    from olcore.handlers.options import Options
    from olcore.interfaces import Registry

log = logging.getLogger(__name__)

_Value = TypeVar("_Value")

_VERSION = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,128}")
# No handler can be called so: '~' is not among the letters of names.
_PULLING = "~pull-"
_TRASH = "~trash-"
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


class Code(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One version of one handler, ready to be served."""

    version: HandlerVersion
    folder: Path
    settings: HandlerSettings
    wanted: Wanted
    packages: Path | None
    """The folder mapped to ``/packages``."""


class _Known:
    """What is known about one handler."""

    __slots__ = ("code", "code_asked", "missing", "until_s", "version", "version_asked")

    def __init__(self) -> None:
        self.version: HandlerVersion | None = None
        self.version_asked = 0
        self.code: Code | None = None
        self.code_asked = 0
        self.until_s = 0.0
        self.missing: HandlerNotFoundError | None = None


class CodeCache:
    """The code of every handler that was asked for.

    Args:
        registry: Where code comes from; started.
        packages: Installs what handlers want; ``None`` where handlers have the standard library only.
        options: The bounds for handlers' settings, and how long a remote registry's answer holds.
        folder: The cache's own; ``<name>/<version>`` below it.
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
        self._folder = folder
        self._pulled = pulled
        self._is_remote = registry.remote
        self._cache_s = options.registry_cache_ms / 1000
        self._known: dict[str, _Known] = {}
        self._flights: dict[object, asyncio.Task[Any]] = {}
        self._chores: set[asyncio.Task[Any]] = set()
        self._asked = 0
        self.stale_served = 0
        """How many requests got code that the registry, being away, could not confirm."""

    def start(self) -> None:
        """Make the folder, and clear what a crash left half done."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in [*self._folder.glob(f"{_PULLING}*"), *self._folder.glob(f"{_TRASH}*")]:
            shutil.rmtree(left)

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
        known = self._known.get(name)
        if not self._is_remote:
            self._asked = asked = self._asked + 1
            version = await self._looked_up(name, asked)
            known = self._known[name]
        elif known is not None and time.monotonic() < known.until_s:
            if known.missing is not None:
                raise again(known.missing)
            version, asked = known.version, known.version_asked
        else:
            known = await self._asked_remote(name, known)
            version, asked = known.version, known.version_asked
        code = known.code
        if code is not None and (version is None or code.version.version == version.version):
            return code
        if version is None:
            raise HandlerNotFoundError(f"no handler {name!r}")
        return await self._fetched(known, version, asked)

    def tidy(self, name: str, in_use: AbstractSet[str]) -> None:
        """Remove the versions of *name* on disk that are neither the newest nor in *in_use*."""
        known = self._known.get(name)
        newest = known.code if known is not None else None
        is_gone = known is None or known.missing is not None
        if (newest is None and not is_gone) or self._is_pulling(name):
            return
        keep = {*in_use, newest.version.version} if newest is not None else in_use
        try:
            versions = list((self._folder / name).iterdir())
        except FileNotFoundError:
            return
        for version in versions:
            if version.name not in keep:
                self._remove(version)

    def _is_pulling(self, name: str) -> bool:
        return any(isinstance(key, tuple) and key[0] == name for key in self._flights)

    def _remove(self, folder: Path) -> None:
        # Moved aside first, so that nobody ever finds a half-removed version under its name.
        trash = Path(tempfile.mkdtemp(prefix=_TRASH, dir=self._folder))
        folder.rename(trash / "code")
        self._chore(asyncio.to_thread(shutil.rmtree, trash))

    def _chore(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def _asked_remote(self, name: str, known: _Known | None) -> _Known:
        self._asked = asked = self._asked + 1
        flight = self._flight(name, lambda: self._looked_up(name, asked))
        if known is not None and known.until_s < 0 and known.code is not None:
            # The last attempt failed: this one may take as long to fail, so nobody waits for it.
            self.stale_served += 1
            return known
        await _joined(flight)
        return self._known[name]

    async def _looked_up(self, name: str, asked: int) -> HandlerVersion | None:
        try:
            version = await self._registry.lookup(name)
        except HandlerNotFoundError as error:
            self._missed(name, error)
            raise
        except RegistryUnavailableError as error:
            return self._served_stale(name, error)
        known = self._known.get(name)
        if known is None:
            if not _VERSION.fullmatch(version.version):
                raise RegistryError(f"the registry calls a version {version.version!r}") from None
            known = self._known[name] = _Known()
        if asked < known.version_asked:
            return known.version
        known.version = version
        known.version_asked = asked
        known.missing = None
        known.until_s = time.monotonic() + self._cache_s
        return version

    def _missed(self, name: str, error: HandlerNotFoundError) -> None:
        if not self._is_remote:
            self._known.pop(name, None)
            return
        now = time.monotonic()
        if len(self._known) > _MOST_KNOWN:  # somebody tries names
            self._known = {key: value for key, value in self._known.items() if not value.missing}
        known = self._known.setdefault(name, _Known())
        known.version = known.code = None
        known.missing = error
        known.until_s = now + self._cache_s

    def _served_stale(self, name: str, error: RegistryUnavailableError) -> HandlerVersion:
        known = self._known.get(name)
        version = known.version if known is not None and known.code is not None else None
        version = version or self._newest_on_disk(name)
        if version is None:
            error.retry_after_s = error.retry_after_s or _RETRY_AFTER_S
            raise error
        if known is None or known.version is None:
            known = self._known.setdefault(name, _Known())
            known.version = version
        known.until_s = -1.0
        self.stale_served += 1
        log.warning("%s: serving cached version %s of %r", error, version.version, name)
        return version

    def _newest_on_disk(self, name: str) -> HandlerVersion | None:
        try:
            versions = sorted(
                (self._folder / name).iterdir(), key=lambda folder: folder.stat().st_mtime_ns
            )
        except FileNotFoundError:
            return None
        return HandlerVersion(name=name, version=versions[-1].name) if versions else None

    async def _fetched(self, known: _Known, version: HandlerVersion, asked: int) -> Code:
        try:
            code: Code = await _joined(
                self._flight((version.name, version.version), lambda: self._fetch(version))
            )
        except RegistryUnavailableError as error:
            if known.code is None:
                error.retry_after_s = error.retry_after_s or _RETRY_AFTER_S
                raise
            log.warning("%s: going on with cached code of %r", error, version.name)
            self.stale_served += 1
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

    async def _fetch(self, version: HandlerVersion) -> Code:
        began = time.monotonic()
        folder = self._folder / version.name / version.version
        is_new = not folder.is_dir()
        if is_new:
            version = await self._pull(version)
            folder = self._folder / version.name / version.version
        read = await asyncio.to_thread(handler_settings.read, folder, self._options)
        wanted = Wanted(handler=version.name, wheels=())
        packages = None
        if self._packages is not None:
            wanted = await self._packages.prepare(folder)
            packages = await self._packages.folder(wanted)
        if is_new:
            self._pulled(version, time.monotonic() - began)
        return Code(version=version, folder=folder, settings=read, wanted=wanted, packages=packages)

    async def _pull(self, version: HandlerVersion) -> HandlerVersion:
        temporary = Path(tempfile.mkdtemp(prefix=_PULLING, dir=self._folder))
        try:
            pulled = await self._registry.pull(version, temporary)
            if not _VERSION.fullmatch(pulled.version):
                raise RegistryError(f"the registry calls a version {pulled.version!r}")
            # mkdtemp keeps it from others; the sandbox's uid must be able to enter.
            temporary.chmod(0o755)
            target = self._folder / version.name / pulled.version
            target.parent.mkdir(exist_ok=True)
            if not target.is_dir():
                temporary.rename(target)
        finally:
            await asyncio.to_thread(shutil.rmtree, temporary, ignore_errors=True)
        return HandlerVersion(name=version.name, version=pulled.version)

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
