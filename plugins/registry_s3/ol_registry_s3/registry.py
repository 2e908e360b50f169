"""Handlers as ``<name>.tar.gz`` at an fsspec URL.

fsspec's backends block, so every call runs in a thread of the registry's own: when the store hangs, what else the worker
does in threads goes on. A caller waits for ``timeout_s`` and no longer; a thread that hangs is let go, and ends with the
client's own time limit, which is the same.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ol_registry_s3.faults import Conflict, Missing, too_slow, translate
from ol_registry_s3.store import Object, Store, shown
from olcore import bundles
from olcore.errors import (
    ConflictError,
    HandlerInvalidError,
    HandlerNotFoundError,
    RegistryUnavailableError,
)
from olcore.interfaces import HandlerVersion, Registry, RegistryContext

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ol_registry_s3.settings import S3Settings

_Value = TypeVar("_Value")

SUFFIX = ".tar.gz"
_NAME = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,128}")
_THREADS = 8
_PULL_TRIES = 5


class S3Registry(Registry):
    """The bundles at one URL.

    Args:
        context: Says how long to wait, and what is too big.
        settings: Say where.
    """

    remote = True
    writable = True

    def __init__(self, context: RegistryContext, settings: S3Settings) -> None:
        self._settings = settings
        self._timeout_s = context.timeout_s
        self._bounds = bundles.Bounds(
            max_mb=context.max_bundle_mb, max_files=context.max_bundle_files
        )
        self._url = shown(settings.url).rstrip("/")
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ol-registry-s3")
        self._store: Store | None = None

    async def start(self) -> None:
        # Nothing is asked of the store: a worker starts, and serves what it has, while its registry is away.
        self._store = await self._in_thread(lambda: Store(self._settings, self._timeout_s))

    async def close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            await asyncio.to_thread(store.close)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def lookup(self, name: str) -> HandlerVersion:
        return _version(name, await self._found(name))

    async def pull(self, version: HandlerVersion, target: Path) -> HandlerVersion:
        name = version.name
        with tempfile.TemporaryDirectory(prefix="ol-registry-s3-") as folder:
            bundle = Path(folder) / "bundle"
            found = await self._in_thread(lambda: self._fetch(name, bundle), name)
            # Not in the registry's threads: this one may take its time, and waits for nobody else.
            await asyncio.to_thread(bundles.unpack, bundle, target, self._bounds, self._where(name))
        return _version(name, found)

    async def names(self) -> Sequence[HandlerVersion]:
        found = await self._in_thread(self._ready.listed)
        named = [(each.name.removesuffix(SUFFIX), each) for each in found]
        return sorted(
            (
                _version(name, each)
                for name, each in named
                if name != each.name and _NAME.fullmatch(name)
            ),
            key=lambda version: version.name,
        )

    async def publish(
        self, name: str, bundle: Path, if_version: str | None = None
    ) -> HandlerVersion:
        found = await self._in_thread(lambda: self._publish(name, bundle, if_version), name)
        return _version(name, found)

    async def remove(self, name: str, if_version: str | None = None) -> None:
        await self._in_thread(lambda: self._remove(name, if_version), name)

    @property
    def _ready(self) -> Store:
        if self._store is None:
            raise RegistryUnavailableError(f"{self._url}: the registry is closed")
        return self._store

    async def _found(self, name: str) -> Object:
        return await self._in_thread(lambda: self._ready.find(name + SUFFIX), name)

    async def _in_thread(self, work: Callable[[], _Value], name: str = "") -> _Value:
        where = self._where(name)
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.wait_for(running, self._timeout_s)
        except TimeoutError as error:
            raise too_slow(where, self._timeout_s) from error
        except Exception as error:
            told = translate(error, where, self._settings)
            if isinstance(told, Missing):
                told = self._not_found(name)
            if isinstance(told, Conflict):
                told = ConflictError(f"handler {name!r} changed meanwhile, or is there already")
            if told is error:
                raise
            raise told from error

    def _where(self, name: str) -> str:
        return f"{self._url}/{name}{SUFFIX}" if name else self._url

    def _not_found(self, name: str) -> HandlerNotFoundError:
        return HandlerNotFoundError(
            f"no handler {name!r} at {self._where(name)}",
            hint=f"add it with: olcore upload --handler {name} --file FOLDER",
        )

    def _fetch(self, name: str, bundle: Path) -> Object:
        key = name + SUFFIX
        for _ in range(_PULL_TRIES):
            before = self._ready.find(key)
            if before.size > (self._bounds.max_mb + 1 << 20):
                raise HandlerInvalidError(
                    f"{self._where(name)} has {before.size} bytes, over the limit of"
                    f" {self._bounds.max_mb} MiB (max_bundle_mb)"
                )
            self._ready.fetch(key, bundle)
            if self._ready.find(key).version == before.version:
                if bundle.stat().st_size != before.size:
                    raise RegistryUnavailableError(
                        f"{self._where(name)}: got {bundle.stat().st_size} of {before.size} bytes",
                        retry_after_s=1.0,
                    )
                return before
        raise RegistryUnavailableError(
            f"{self._where(name)} changes faster than it can be fetched", retry_after_s=1.0
        )

    def _publish(self, name: str, bundle: Path, if_version: str | None) -> Object:
        key = name + SUFFIX
        store = self._ready
        with store.writing():
            condition: dict[str, str] = {}
            if if_version is not None:
                present = self._present(name, if_version)
                if present is None:
                    condition = {"IfNoneMatch": "*"}
                elif present.etag:
                    condition = {"IfMatch": present.etag}
            store.store(key, bundle, condition)
            return store.find(key)

    def _remove(self, name: str, if_version: str | None) -> None:
        with self._ready.writing():
            # Looked at in any case, because S3 is content to delete what is not there.
            present = self._ready.find(name + SUFFIX)
            if if_version is not None and present.version != if_version:
                raise _conflict(name, present.version, if_version)
            self._ready.remove(name + SUFFIX)

    def _present(self, name: str, wanted: str) -> Object | None:
        try:
            present = self._ready.find(name + SUFFIX)
        except Exception as error:
            if not isinstance(translate(error, "", self._settings), Missing):
                raise
            present = None
        version = present.version if present else ""
        if version != wanted:
            raise _conflict(name, version, wanted)
        return present


def _conflict(name: str, version: str, wanted: str) -> ConflictError:
    was = f"has version {version!r}" if version else "is not there"
    need = f"not version {wanted!r}" if wanted else "and must not be there yet"
    return ConflictError(f"handler {name!r} {was}, {need}", details={"version": version})


def _version(name: str, found: Object) -> HandlerVersion:
    return HandlerVersion(name=name, version=found.version)
