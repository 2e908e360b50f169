"""Makes the containers of one worker, and removes what a dead one left."""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from ol_sandbox_docker import network, scratch
from ol_sandbox_docker.containers import Folders, config, labels, network_name, tag
from ol_sandbox_docker.engine import Engine, NoSuchThingError
from ol_sandbox_docker.launch import started
from ol_sandbox_docker.probe import probe
from ol_sandbox_docker.sandbox import DockerSandbox, Parts, Threads
from ol_sandbox_docker.usable import why_unusable
from ol_sandbox_docker.warm import Slot, WarmPool
from olcore.errors import BackendUnusableError, SandboxError, SandboxUnavailableError
from olcore.interfaces import (
    GuestInfo,
    Limits,
    Network,
    Sandbox,
    SandboxPool,
    SandboxSpec,
    WorkerContext,
)

if TYPE_CHECKING:
    from pathlib import Path

    from ol_sandbox_docker.settings import DockerSettings

_THREADS = 16
"""Calls of the engine at once; it serves its own work under locks, so more would only wait there."""


class DockerPool(SandboxPool):
    """Containers of one worker on one engine."""

    def __init__(self, context: WorkerContext, settings: DockerSettings) -> None:
        self._context = context
        self._settings = settings
        self._engine = Engine(settings.base_url, settings.timeout_s)
        self._threads = Threads(_THREADS)
        self._live: set[DockerSandbox] = set()
        self._to_remove: set[str] = set()
        self._has_network = False
        self._network_lock = asyncio.Lock()
        self._closed = False
        folder = context.worker_dir / "docker" / "warm"
        left = self._to_remove.add
        self.warm = WarmPool(context, settings, self._engine, self._threads, folder, left)
        self._parts = Parts(self._engine, self._threads, self.warm.release, self._forget)

    async def start(self) -> None:
        await self._threads.run(self._engine.ping)
        reason = await self._threads.run(why_unusable, self._settings)
        if reason is not None:
            raise BackendUnusableError(f"the sandbox 'docker' cannot be used: {reason}")
        await self._threads.run(self._remove_networks_of_before)
        if self._context.network is Network.NAT:
            await self._make_network()
        await self.warm.start()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self.warm.close()
        await asyncio.gather(*(sandbox.destroy() for sandbox in list(self._live)))
        await self._remove_leftovers()
        if self._has_network:
            with suppress(SandboxError):  # the engine is away: clean finds it by its label
                await self._threads.run(network.remove, self._engine, self._context)
        await self._threads.run(self.warm.remove_folder)
        self._threads.close()
        self._engine.close()

    async def make_scratch(self, folder: Path, limits: Limits) -> None:
        await self._threads.run(scratch.make, folder, limits.scratch_mb)

    async def remove_scratch(self, folder: Path) -> None:
        if self._closed:
            scratch.remove(folder)
        else:
            await self._threads.run(scratch.remove, folder)

    async def create(self, spec: SandboxSpec) -> Sandbox:
        if self._closed:
            raise SandboxError(f"sandbox {spec.id!r} cannot be made: its pool is closed")
        if spec.network is Network.NAT:
            await self._make_network()
        await self._remove_leftovers()
        try:
            return await self._create(spec)
        except NoSuchThingError as error:
            if await self._threads.run(self._engine.image, self._settings.image) is None:
                raise SandboxError(
                    error.message, hint=f"make {self._settings.image!r} with 'olcore image build'"
                ) from error
            if spec.network is not Network.NAT or await self._threads.run(self._find_network):
                raise
            # Somebody has removed our network, with `docker network prune` perhaps.
            self._has_network = False
            await self._make_network()
            return await self._create(spec)

    async def _create(self, spec: SandboxSpec) -> Sandbox:
        slot = self.warm.take(spec)
        launching = asyncio.ensure_future(self._threads.run(self._launch, spec, slot))
        try:
            container, pidfd = await asyncio.shield(launching)
        except asyncio.CancelledError:
            # A thread cannot be cancelled; what it makes is removed when it is there.
            launching.add_done_callback(self._discard)
            raise
        sandbox = DockerSandbox(spec.id, container, pidfd, spec.limits, self._parts)
        self._live.add(sandbox)
        return sandbox

    async def probe(self) -> GuestInfo:
        name = f"ol-{tag(self._context)}-probe"
        return await self._threads.run(
            probe, self._engine, self._settings, name, labels(self._context)
        )

    def _launch(self, spec: SandboxSpec, slot: Slot | None) -> tuple[str, int]:
        if slot is not None:
            self.warm.send(slot, spec)
            return slot.container, slot.pidfd
        folders = Folders(code=spec.code, scratch=spec.scratch, packages=spec.packages)
        described = config(self._context, self._settings, folders, spec.limits, spec.network)
        described["Labels"] |= {"ol.handler": spec.handler, "ol.instance": spec.id}
        # The engine's own rule for names.
        name = re.sub(r"[^A-Za-z0-9_.-]", "-", f"ol-{tag(self._context)}-{spec.id}")
        return started(self._engine, name, described, self._to_remove.add)

    def _discard(self, launched: asyncio.Future[tuple[str, int]]) -> None:
        if not launched.cancelled() and launched.exception() is None:
            container, pidfd = launched.result()
            os.close(pidfd)
            self._to_remove.add(container)

    def _forget(self, sandbox: DockerSandbox, removed: bool) -> None:
        self._live.discard(sandbox)
        if not removed:
            self._to_remove.add(sandbox.container)

    async def _remove_leftovers(self) -> None:
        while self._to_remove:
            container = self._to_remove.pop()
            try:
                await self._threads.run(self._engine.remove, container)
            except SandboxError:
                self._to_remove.add(container)
                return
            await self._threads.run(self.warm.release, container)

    def _find_network(self) -> bool:
        name = network_name(self._context)
        return any(each["Name"] == name for each in self._engine.networks(labels(self._context)))

    def _remove_networks_of_before(self) -> None:
        network.remove(self._engine, self._context)

    async def _make_network(self) -> None:
        async with self._network_lock:
            if not self._has_network:
                await self._threads.run(network.make, self._engine, self._context)
                self._has_network = True


def clean(context: WorkerContext, settings: DockerSettings) -> list[str]:
    """Remove what a dead worker of that name left: containers, its network and rules, scratch mounts.

    Raises:
        SandboxUnavailableError: The engine is away; all that does not need it has been removed.
    """
    engine = Engine(settings.base_url, settings.timeout_s)
    removed: list[str] = []
    away: SandboxUnavailableError | None = None
    try:
        removed += _remove_containers(engine, context)
        removed += network.remove(engine, context)
    except SandboxUnavailableError as error:
        away = error
    finally:
        engine.close()
    removed += scratch.clean(context.worker_dir)
    if away is not None:
        # The rules stay with the network: they are what keeps it from this host when the engine is back.
        raise SandboxUnavailableError(
            f"{away.message}; what it may have of this worker goes with the next 'olcore kill' when it is back",
            hint=away.hint,
        ) from away
    return removed


def _remove_containers(engine: Engine, context: WorkerContext) -> list[str]:
    found = engine.containers(labels(context))
    for container in found:
        engine.remove(container["Id"])
    return [f"removed the container {container['Names'][0].lstrip('/')}" for container in found]
