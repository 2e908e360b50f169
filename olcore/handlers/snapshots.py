"""Keeps the private zygotes of handlers that ask for a snapshot: each has imported the handler itself.

A snapshot is made in the background, after a first instance has shown that the handler loads, so that a broken handler
is told by its own error. It belongs to one version; the one of an older version goes when nothing lives that was forked
from it. A handler whose snapshot fails is served without one, as before; a snapshot that was killed, or found no room on
the disk, is made anew a few times.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from olcore.errors import SandboxError
from olcore.interfaces import Network, Zygote, ZygotePool, ZygoteSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from typing import Any

    from olcore.handlers.code import Code

_log = logging.getLogger(__name__)

KEEP_S = 3600.0
"""A snapshot from which nothing was forked for so long goes; the next instance makes it anew."""

MOST_LOST = 3
"""How often the snapshot of one version may be lost through no fault of its own, as far as can be told."""


@dataclass(slots=True, eq=False)
class _Kept:
    version: str
    zygote: Zygote | None = None
    """None while it is being made, and when it cannot be."""
    used_s: float = 0.0


class Snapshots:
    """The snapshots of one worker.

    Args:
        pool: Makes zygotes.
        folder: Gets a folder for each snapshot, with its stdout and stderr.
        spawn: Runs work beside everything else, and waits for it when the worker stops.
    """

    def __init__(
        self,
        pool: ZygotePool,
        folder: Path,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._pool = pool
        self._folder = folder
        self._spawn = spawn
        self._kept: dict[str, _Kept] = {}
        self._retired: list[Zygote] = []
        self._lost: dict[str, tuple[str, int]] = {}
        """By handler: a version, and how often its snapshot was lost."""
        self._numbers = itertools.count()
        self._is_closed = False
        self._making: set[asyncio.Task[None]] = set()

    def choose(self, code: Code) -> Zygote | None:
        """Return the snapshot of *code* if there is one that can be forked; never waits."""
        kept = self._kept.get(code.version.name)
        if kept is None or kept.version != code.version.version or kept.zygote is None:
            return None
        if not kept.zygote.alive:
            self._retire(code.version.name)
            return None
        kept.used_s = time.monotonic()
        return kept.zygote

    def loaded(self, code: Code, parent: Zygote | None) -> None:
        """Learn that an instance of *code* can serve; make its snapshot if it wants one and has none.

        Args:
            code: What was loaded.
            parent: What the instance was forked from, if not from the empty zygote: it will do for the snapshot, too.
        """
        name, version = code.version.name, code.version.version
        kept = self._kept.get(name)
        if kept is not None and kept.version == version:
            return
        if kept is not None:
            self._retire(name)
        if code.settings.snapshot and not self._is_closed and not _why_not(code):
            self._kept[name] = _Kept(version, used_s=time.monotonic())
            task = self._spawn(self._make(code, self._kept[name], parent))
            self._making.add(task)
            task.add_done_callback(self._making.discard)

    def failed(self, code: Code, zygote: Zygote, reason: str) -> None:
        """Learn that no instance could be forked from *zygote*: it goes, and is made anew only if it was dead."""
        name = code.version.name
        kept = self._kept.get(name)
        if kept is None or kept.zygote is not zygote:
            return
        kept.zygote = None
        self._retired.append(zygote)
        if zygote.alive or not self._may_retry(name, kept):
            _log.warning("snapshot of %r given up: %s", name, reason)
        else:
            _log.warning("snapshot of %r is dead, and will be made anew", name)
        self.sweep()

    def sweep(self) -> None:
        """Let go what is not needed any more and has no descendants."""
        oldest_s = time.monotonic() - KEEP_S
        for name, kept in list(self._kept.items()):
            if kept.zygote is not None and kept.used_s < oldest_s and not kept.zygote.descendants:
                self._retire(name)
        for zygote in list(self._retired):
            if not zygote.descendants:
                self._retired.remove(zygote)
                self._spawn(self._destroy(zygote))

    def stop(self) -> None:
        """Make no more snapshots, and give up those that are being made."""
        self._is_closed = True
        for task in self._making:
            task.cancel()

    async def close(self) -> None:
        """Destroy every snapshot; call it when all that was spawned has ended. Idempotent, never raises."""
        zygotes = [kept.zygote for kept in self._kept.values() if kept.zygote is not None]
        zygotes += self._retired
        self._kept.clear()
        self._retired.clear()
        for zygote in zygotes:
            await self._destroy(zygote)

    async def _make(self, code: Code, kept: _Kept, parent: Zygote | None) -> None:
        try:
            zygote = await self._made(code, parent)
        except SandboxError as error:
            _log.warning("no snapshot of %r: %s", code.version.name, error.message)
            return
        except OSError as error:  # such as a full disk, which may have room later
            _log.warning("no snapshot of %r: %s", code.version.name, error)
            self._may_retry(code.version.name, kept)
            return
        if self._kept.get(code.version.name) is kept and not self._is_closed:
            kept.zygote = zygote
            _log.info("snapshot of %r is ready", code.version.name)
        else:  # replaced while it was being made
            await self._destroy(zygote)

    async def _made(self, code: Code, parent: Zygote | None) -> Zygote:
        if parent is not None and parent.alive:
            try:
                return await self._pool.create_zygote(self._spec(code), parent)
            except SandboxError as error:
                _log.info("snapshot of %r: not from %s: %s", code.version.name, parent.id, error)
        return await self._pool.create_zygote(self._spec(code), None)

    def _spec(self, code: Code) -> ZygoteSpec:
        identity = f"snapshot-{next(self._numbers)}"
        folder = self._folder / identity
        folder.mkdir(parents=True)
        file = code.settings.entry[0]
        return ZygoteSpec(
            id=identity,
            folder=folder,
            sys_path=["/handler", *(f"/packages/{wheel.folder}" for wheel in code.wanted.wheels)],
            imports=[file.removesuffix(".py").replace("/", ".")],
            code=code.folder,
            environment=code.settings.environment,
        )

    def _may_retry(self, name: str, kept: _Kept) -> bool:
        """Forget *kept*, whose snapshot was lost, so that the next instance makes it anew, unless that was so too often."""
        version, count = self._lost.get(name, ("", 0))
        count = count + 1 if version == kept.version else 1
        self._lost[name] = kept.version, count
        if count >= MOST_LOST:
            return False
        if self._kept.get(name) is kept:
            del self._kept[name]
        return True

    def _retire(self, name: str) -> None:
        kept = self._kept.pop(name)
        if kept.zygote is not None:
            self._retired.append(kept.zygote)

    async def _destroy(self, zygote: Zygote) -> None:
        await zygote.destroy()
        await asyncio.to_thread(shutil.rmtree, self._folder / zygote.id, ignore_errors=True)


def _why_not(code: Code) -> str | None:
    if code.settings.network is Network.HOST:
        return "handlers on the host's network are forked from a zygote of their own"
    if any(wheel.pth for wheel in code.wanted.wheels):
        return "a .pth file of its packages may do what no fork should share"
    return None
