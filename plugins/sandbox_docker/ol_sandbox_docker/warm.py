"""Containers that are created ahead, before it is known what they will serve.

A container's folders are fixed when it is created, but looked up when it starts. So each of these is created over two
links, which are pointed at the real folders just before the start.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ol_sandbox_docker.containers import Folders, config, tag
from olcore.errors import SandboxError

if TYPE_CHECKING:
    from ol_sandbox_docker.engine import Engine
    from ol_sandbox_docker.sandbox import Threads
    from ol_sandbox_docker.settings import DockerSettings
    from olcore.interfaces import SandboxSpec, WorkerContext

_log = logging.getLogger("olcore.docker")


@dataclass(frozen=True, slots=True)
class Slot:
    """One container that was created and not started."""

    container: str
    folder: Path

    def point(self, spec: SandboxSpec) -> None:
        """Let it start over the folders of *spec*."""
        for name, target in (("code", spec.code), ("scratch", spec.scratch)):
            link = self.folder / name
            link.unlink()
            link.symlink_to(target)


class WarmPool:
    """Keeps a number of containers ready, and makes new ones in the background.

    Args:
        folder: For the links; made by ``start``, removed by ``close``.
    """

    def __init__(
        self,
        context: WorkerContext,
        settings: DockerSettings,
        engine: Engine,
        threads: Threads,
        folder: Path,
    ) -> None:
        self._context = context
        self._settings = settings
        self._engine = engine
        self._threads = threads
        self._folder = folder
        self._slots: deque[Slot] = deque()
        self._numbers = itertools.count()
        self._filling: asyncio.Task[None] | None = None
        self._full = asyncio.Event()

    async def start(self) -> None:
        """Begin to fill."""
        if self._settings.warm_pool:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            self._fill()

    async def full(self) -> None:
        """Wait until every container is ready."""
        await self._full.wait()

    def take(self, spec: SandboxSpec) -> Slot | None:
        """Hand out a container that fits *spec*, if there is one, and start making another."""
        fits = (
            spec.limits == self._context.limits
            and spec.network is self._context.network
            and spec.packages in {None, self._context.packages_dir}
        )
        if not fits or not self._settings.warm_pool:
            return None
        slot = self._slots.popleft() if self._slots else None
        self._full.clear()
        self._fill()
        return slot

    def give_back(self, slot: Slot) -> None:
        """Remove the links of a container that has started or failed to."""
        shutil.rmtree(slot.folder, ignore_errors=True)

    async def close(self) -> None:
        """Remove every container that was not handed out."""
        if self._filling is not None:
            self._filling.cancel()
            with suppress(asyncio.CancelledError):
                await self._filling
        for slot in self._slots:
            with suppress(SandboxError):  # the engine is away: clean finds it by its label
                await self._threads.run(self._engine.remove, slot.container)
        self._slots.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _fill(self) -> None:
        if self._filling is None or self._filling.done():
            self._filling = asyncio.get_running_loop().create_task(self._make_all())

    async def _make_all(self) -> None:
        while len(self._slots) < self._settings.warm_pool:
            making = asyncio.ensure_future(self._threads.run(self._make, next(self._numbers)))
            try:
                self._slots.append(await asyncio.shield(making))
            except SandboxError as error:
                # The next request finds none ready, creates its own, and meets the reason itself.
                _log.warning("cannot create a container ahead: %s", error)
                return
            except asyncio.CancelledError:
                # A thread cannot be cancelled: what it makes must be removed all the same.
                with suppress(SandboxError):
                    self._slots.append(await making)
                raise
        self._full.set()

    def _make(self, number: int) -> Slot:
        folder = self._folder / str(number)
        (folder / "empty").mkdir(parents=True)
        for name in ("code", "scratch"):
            (folder / name).symlink_to(folder / "empty")
        folders = Folders(
            code=folder / "code", scratch=folder / "scratch", packages=self._context.packages_dir
        )
        described = config(
            self._context, self._settings, folders, self._context.limits, self._context.network
        )
        try:
            name = f"ol-{tag(self._context)}-warm-{number}"
            return Slot(self._engine.create(name, described), folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
