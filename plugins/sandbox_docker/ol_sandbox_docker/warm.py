"""Containers that are started ahead, before it is known what they will serve.

A container's folders are fixed when it is created. So each of these gets two empty folders of a shared tmpfs, as slaves
of it: what the worker mounts on them later shows inside. Its guest has started and imported what it needs, and waits for
one byte from a pipe. To hand it out, the worker mounts the code and the scratch folder, and writes the byte.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import select
import shutil
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ol_sandbox_docker import mounts
from ol_sandbox_docker.containers import Folders, config, tag
from ol_sandbox_docker.launch import remove, started
from olcore.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ol_sandbox_docker.engine import Engine
    from ol_sandbox_docker.sandbox import Threads
    from ol_sandbox_docker.settings import DockerSettings
    from olcore.interfaces import SandboxSpec, WorkerContext

_log = logging.getLogger("olcore.docker")


@dataclass(frozen=True, slots=True)
class Slot:
    """One container that runs and waits."""

    container: str
    pidfd: int
    go: int
    """The pipe, kept open until the end: when nobody has it open, the kernel forgets the byte in it."""
    folder: Path

    @property
    def alive(self) -> bool:
        """Whether its first process still runs."""
        return not select.select([self.pidfd], [], [], 0)[0]


class WarmPool:
    """Keeps a number of containers ready, and makes new ones in the background.

    Args:
        folder: For the mounts; made by ``start``, removed by ``close``.
        left: Called in a thread with the id of a dead container that could not be removed.
    """

    def __init__(
        self,
        context: WorkerContext,
        settings: DockerSettings,
        engine: Engine,
        threads: Threads,
        folder: Path,
        left: Callable[[str], object],
    ) -> None:
        self._context = context
        self._settings = settings
        self._engine = engine
        self._threads = threads
        self._folder = folder
        self._left = left
        self._is_failing = False
        self._slots: deque[Slot] = deque()
        self._in_use: dict[str, Slot] = {}
        self._numbers = itertools.count()
        self._filling: asyncio.Task[None] | None = None
        self._full = asyncio.Event()

    async def start(self) -> None:
        """Begin to fill."""
        if self._settings.warm_pool:
            await self._threads.run(self._make_folder)
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
        self._full.clear()
        self._fill()
        while self._slots:
            slot = self._slots.popleft()
            self._in_use[slot.container] = slot
            if slot.alive:
                return slot
            # The engine was restarted, or somebody removed it.
            self._threads.start(self._drop, slot)
        return None

    def send(self, slot: Slot, spec: SandboxSpec) -> None:
        """Give a container its folders, and let it run on; blocks.

        Raises:
            SandboxError: They cannot be mounted; the container is gone.
        """
        try:
            mounts.bind_read_only(spec.code, slot.folder / "code", slot.folder / "staging")
            mounts.bind(spec.scratch, slot.folder / "scratch")
            os.write(slot.go, b"g")
        except BaseException:
            os.close(slot.pidfd)
            remove(self._engine, slot.container, self._left)
            self.release(slot.container)
            raise

    def release(self, container: str) -> None:
        """Unmount the folders of a container that is dead; nothing for one that is not of this pool. Blocks."""
        slot = self._in_use.pop(container, None)
        if slot is not None:
            os.close(slot.go)
            for name in ("code", "scratch"):
                if mounts.is_mounted(slot.folder / name):
                    mounts.unmount(slot.folder / name)
            shutil.rmtree(slot.folder, ignore_errors=True)

    async def close(self) -> None:
        """Remove every container that was not handed out."""
        if self._filling is not None:
            self._filling.cancel()
            with suppress(asyncio.CancelledError):
                await self._filling
        while self._slots:
            slot = self._slots.popleft()
            self._in_use[slot.container] = slot
            await self._threads.run(self._drop, slot)

    def remove_folder(self) -> None:
        """Remove what ``start`` made; every container must be gone. Blocks."""
        if self._settings.warm_pool:
            mounts.unmount(self._folder)
            shutil.rmtree(self._folder.parent, ignore_errors=True)

    def _make_folder(self) -> None:
        self._folder.mkdir(parents=True)
        mounts.tmpfs(self._folder, "size=1m,mode=755")
        mounts.share(self._folder)

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
                if not self._is_failing:  # said once: each request tries again
                    _log.warning("cannot start a container ahead: %s", error)
                self._is_failing = True
                return
            except asyncio.CancelledError:
                # A thread cannot be cancelled: what it makes must be removed all the same.
                with suppress(SandboxError):
                    self._slots.append(await making)
                raise
            self._is_failing = False
        self._full.set()

    def _make(self, number: int) -> Slot:
        folder = self._folder / str(number)
        for name in ("code", "scratch", "staging"):
            (folder / name).mkdir(parents=True)
        pipe = folder / "go"
        os.mkfifo(pipe, 0o644)
        # Both ends: so that the guest's open does not wait, nor the byte for the guest.
        go = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
        try:
            folders = Folders(
                code=folder / "code",
                scratch=folder / "scratch",
                packages=self._context.packages_dir,
                go=pipe,
            )
            described = config(
                self._context, self._settings, folders, self._context.limits, self._context.network
            )
            name = f"ol-{tag(self._context)}-warm-{number}"
            container, pidfd = started(self._engine, name, described, self._left)
        except BaseException:
            os.close(go)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return Slot(container, pidfd, go, folder)

    def _drop(self, slot: Slot) -> None:
        os.close(slot.pidfd)
        remove(self._engine, slot.container, self._left)
        self.release(slot.container)
