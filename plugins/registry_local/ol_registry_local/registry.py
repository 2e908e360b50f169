"""The local handler store: ``<name>/`` or ``<name>.tar.gz`` in one folder.

A user puts a handler there with ``cp -r``, edits it in place, or makes it a link to where the code is kept; ``upload``
puts a bundle there. Where both are, the folder counts. So publishing is two renames, and a reader sees the old code or
the new at any instant: the bundle comes into place unseen, then the folder goes away.

Names that begin with a dot are ours: files on their way in or out, and the lock that publishers take.
"""

from __future__ import annotations

import asyncio
import difflib
import fcntl
import os
import re
import shutil
import time
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ol_registry_local.walk import Walk, settled_walk, walk
from olcore import bundles
from olcore.errors import (
    BadNameError,
    ConflictError,
    HandlerNotFoundError,
    OlcoreError,
    RegistryUnavailableError,
)
from olcore.interfaces import HandlerVersion, Registry, RegistryContext

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SUFFIX = ".tar.gz"

_INLINE_FILES = 32
_LARGE_EVERY_S = 0.1
_PULL_TRIES = 5
_NAMES_COMPARED = 1000
_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,128}")
_ARRIVING = ".arriving-"
_LEAVING = ".leaving-"


class LocalRegistry(Registry):
    """A folder of handlers.

    Args:
        context: Says where the folder is, and what is too big.
        settle_s: A handler that was touched less than so long ago is looked at again before it is taken for code.
    """

    remote = False
    writable = True

    def __init__(self, context: RegistryContext, *, settle_s: float = 0.05) -> None:
        self._folder = context.registry_dir
        self._bounds = bundles.Bounds(
            max_mb=context.max_bundle_mb, max_files=context.max_bundle_files
        )
        self._timeout_s = context.timeout_s
        self._settle_s = settle_s
        self._known: dict[str, _Known] = {}
        self._looking: dict[str, asyncio.Task[HandlerVersion]] = {}

    async def start(self) -> None:
        # The folder may come later: a worker without handlers is a worker.
        pass

    async def close(self) -> None:
        looking = list(self._looking.values())
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)

    def peek(self, name: str) -> HandlerVersion | None:
        known = self._known.get(name)
        return known.answer if known is not None and known.is_current() else None

    async def lookup(self, name: str) -> HandlerVersion:
        known = self.peek(name)
        if known is not None:
            return known
        answer = self._look_inline(name)
        return answer if answer is not None else await self._look_in_thread(name)

    async def pull(self, version: HandlerVersion, target: Path) -> HandlerVersion:
        return await asyncio.to_thread(self._pull, version.name, target)

    async def names(self) -> Sequence[HandlerVersion]:
        return await asyncio.to_thread(self._names)

    async def publish(
        self, name: str, bundle: Path, if_version: str | None = None
    ) -> HandlerVersion:
        return await asyncio.to_thread(self._publish, name, bundle, if_version)

    async def remove(self, name: str, if_version: str | None = None) -> None:
        await asyncio.to_thread(self._remove, name, if_version)

    def _look_inline(self, name: str) -> HandlerVersion | None:
        try:
            path = self._path(name)
            found = walk(path, _INLINE_FILES) if path else None
        except OSError:
            # Whatever it is, the thread meets it again, and has the time to explain.
            return None
        if found is None or found.unsettled_s(self._settle_s):
            return None
        if found.is_torn(self._earlier(name)):
            return None
        return self._remember(name, found)

    async def _look_in_thread(self, name: str) -> HandlerVersion:
        task = self._looking.get(name)
        if task is None:
            task = asyncio.create_task(self._look(name))
            self._looking[name] = task
            task.add_done_callback(lambda _: self._looking.pop(name, None))
        # Shielded, because one caller that goes away must not take the answer from the others.
        return await asyncio.shield(task)

    async def _look(self, name: str) -> HandlerVersion:
        try:
            found = await asyncio.wait_for(
                asyncio.to_thread(self._settled, name), timeout=self._timeout_s
            )
        except TimeoutError as error:
            self._known.pop(name, None)
            raise RegistryUnavailableError(
                f"{str(self._folder / name)!r} could not be looked at within {self._timeout_s} s",
                retry_after_s=1.0,
            ) from error
        except HandlerNotFoundError:
            self._known.pop(name, None)
            raise
        return self._remember(name, found)

    def _remember(self, name: str, found: Walk) -> HandlerVersion:
        answer = HandlerVersion(name=name, version=found.version)
        self._known.pop(name, None)
        if not found.unsettled_s(self._settle_s):
            folder = str(self._folder / name)
            hidden_by = "" if found.path == folder else folder
            self._known[name] = _Known(answer, found, hidden_by, time.monotonic())
        return answer

    def _settled(self, name: str) -> Walk:
        path = self._path(name)
        if path is None:
            raise self._not_found(name)
        with self._explained(name):
            return settled_walk(path, self._settle_s, self._earlier(name))

    def _earlier(self, name: str) -> Walk | None:
        known = self._known.get(name)
        return known.found if known is not None else None

    def _path(self, name: str) -> str | None:
        if name.startswith("."):
            return None
        folder = str(self._folder / name)
        if os.path.isdir(folder):  # noqa: PTH112  # on the path of every request, and Path costs more than the call
            return folder
        bundle = folder + SUFFIX
        return bundle if os.path.isfile(bundle) else None  # noqa: PTH113  # ditto

    def _pull(self, name: str, target: Path) -> HandlerVersion:
        for _ in range(_PULL_TRIES):
            before = self._settled(name)
            try:
                self._fetch(before.path, target)
            except OlcoreError:
                # A file that went away under our hands is no fault of the handler's.
                if before.is_current():
                    raise
                continue
            if before.is_current():
                return HandlerVersion(name=name, version=before.version)
            bundles.empty(target)
        raise RegistryUnavailableError(
            f"{str(self._folder / name)!r} changes faster than it can be copied", retry_after_s=1.0
        )

    def _fetch(self, path: str, target: Path) -> None:
        if path.endswith(SUFFIX) and not Path(path).is_dir():
            bundles.unpack(Path(path), target, self._bounds)
        else:
            bundles.copy(Path(path), target, self._bounds)

    def _names(self) -> Sequence[HandlerVersion]:
        answers = []
        for name in sorted(self._stored_names()):
            path = self._path(name)
            # One that goes away while we list is not there.
            with suppress(OSError):
                found = walk(path) if path else None
                if found is not None:
                    answers.append(HandlerVersion(name=name, version=found.version))
        return answers

    def _stored_names(self) -> set[str]:
        names = set()
        with self._explained(""), suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                name = entry.name if entry.is_dir() else entry.name.removesuffix(SUFFIX)
                if (entry.is_dir() or name != entry.name) and _NAME.fullmatch(name):
                    names.add(name)
        return names

    def _publish(self, name: str, bundle: Path, if_version: str | None) -> HandlerVersion:
        if name.startswith("."):
            raise BadNameError(
                f"{name!r} begins with a dot", hint="the local registry keeps such names for itself"
            )
        with self._explained(name), self._locked():
            self._check_version(name, if_version)
            arriving = self._folder / f"{_ARRIVING}{name}"
            try:
                with bundle.open("rb") as source, arriving.open("wb") as stored:
                    shutil.copyfileobj(source, stored)
                    stored.flush()
                    os.fsync(stored.fileno())
                arriving.chmod(0o644)
                arriving.replace(self._folder / f"{name}{SUFFIX}")
            finally:
                arriving.unlink(missing_ok=True)
            self._take_away(name)
            found = walk(str(self._folder / f"{name}{SUFFIX}"))
            assert found is not None  # noqa: S101  # without at_most it never gives up
            return HandlerVersion(name=name, version=found.version)

    def _remove(self, name: str, if_version: str | None) -> None:
        if self._path(name) is None:
            raise self._not_found(name)
        with self._explained(name), self._locked():
            self._check_version(name, if_version, present=True)
            # The bundle first: while there is a folder, nobody sees it.
            (self._folder / f"{name}{SUFFIX}").unlink(missing_ok=True)
            self._take_away(name)

    def _take_away(self, name: str) -> None:
        leaving = self._folder / f"{_LEAVING}{name}"
        with suppress(FileNotFoundError):
            (self._folder / name).rename(leaving)
            _delete(leaving)

    def _check_version(self, name: str, wanted: str | None, *, present: bool = False) -> None:
        path = self._path(name)
        if path is None and present:
            raise self._not_found(name)
        found = walk(path) if path else None
        version = found.version if found else ""
        if wanted is not None and version != wanted:
            was = f"has version {version!r}" if version else "is not there"
            need = f"not version {wanted!r}" if wanted else "and must not be there yet"
            raise ConflictError(f"handler {name!r} {was}, {need}", details={"version": version})

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        deadline_s = time.monotonic() + self._timeout_s
        with (self._folder / ".lock").open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline_s:
                        raise RegistryUnavailableError(
                            f"somebody else has been changing {str(self._folder)!r} for"
                            f" {self._timeout_s} s",
                            retry_after_s=1.0,
                        ) from error
                    time.sleep(0.01)
            # Nobody else is at work, so what is on its way belongs to someone who died.
            for pattern in (f"{_ARRIVING}*", f"{_LEAVING}*"):
                for left in self._folder.glob(pattern):
                    _delete(left)
            yield

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise self._not_found(name) from error
        except OSError as error:
            raise RegistryUnavailableError(
                f"{error.filename or str(self._folder / name)!r}: {error.strerror}",
                hint=f"the worker must be able to read {str(self._folder)!r}",
                retry_after_s=1.0,
            ) from error

    def _not_found(self, name: str) -> HandlerNotFoundError:
        if not self._folder.is_dir():
            return HandlerNotFoundError(
                f"no handler {name!r}: there is no registry folder {str(self._folder)!r}",
                hint=f"make it with: mkdir {self._folder}",
            )
        names = list(islice(self._stored_names(), _NAMES_COMPARED))
        near = difflib.get_close_matches(name, names, 3)
        mean = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        return HandlerNotFoundError(
            f"no handler {name!r} in {str(self._folder)!r}",
            hint=f"{mean}add it with: cp -r FOLDER {self._folder / name}",
        )


class _Known(msgspec.Struct, frozen=True, gc=False):
    """The last answer for one name."""

    answer: HandlerVersion
    found: Walk
    hidden_by: str
    """Where a folder would take the place of the bundle that was found; empty when a folder was."""
    at_s: float

    def is_current(self) -> bool:
        if len(self.found.seen) > _INLINE_FILES:
            return time.monotonic() - self.at_s < _LARGE_EVERY_S
        if self.hidden_by and os.path.isdir(self.hidden_by):  # noqa: PTH112  # as in _path
            return False
        return self.found.is_current()


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
