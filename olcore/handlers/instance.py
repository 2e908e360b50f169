"""One instance: a small state machine over one Sandbox and the channel to its guest.

::

    starting --> idle <--> busy --> dead
                  |  ^
                  v  |          (from every state to dead)
                 paused
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from olcore.errors import InstanceDiedError, OlcoreError, SandboxError
from olcore.guest import protocol
from olcore.handlers.channel import Channel
from olcore.handlers.options import MIB
from olcore.handlers.rendezvous import Rendezvous, tail
from olcore.interfaces import IdleInstance, InstanceInfo, SandboxSpec

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from olcore.handlers.code import Code
    from olcore.interfaces import Death, ImportRecord, Sandbox, SandboxPool, Zygote

log = logging.getLogger(__name__)

_CONNECT_S = 30.0
_DEATH_S = 2.0

_encode = msgspec.json.Encoder().encode


class State(StrEnum):
    """Where an instance stands."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    PAUSED = "paused"
    DEAD = "dead"


class Instance:
    """One sandbox that serves one version of one handler.

    Whoever makes one calls ``destroy`` in the end, also when ``start`` failed.

    Args:
        number: Unique within the worker.
        code: What it serves.
        generation: Counts the versions of the handler, as this worker saw them.
        folder: Its scratch folder, which does not exist yet.
        on_death: Called once when it dies or its connection ends; whoever destroys it knows already.
    """

    def __init__(
        self,
        number: str,
        code: Code,
        generation: int,
        folder: Path,
        on_death: Callable[[Instance], None],
    ) -> None:
        self.id = number
        self.code = code
        self.generation = generation
        self.label = f"instance {number} of {code.version.name!r}"
        self.state = State.STARTING
        self.served = 0
        self.cold_start_s = 0.0
        self.view = IdleInstance(number, 0.0, paused=False)
        self.death: Death | None = None
        self.sandbox: Sandbox | None = None
        self.memory_mb = code.settings.limits.memory_mb
        self.timeout_s = code.settings.limits.timeout_s
        self.can_pause = True
        self.channel = Channel(
            self.label, int(code.settings.limits.max_result_mb * MIB), self._on_lost
        )
        self._folder = folder
        self._on_death = on_death
        self._pausing: asyncio.Task[None] | None = None
        self._undo = AsyncExitStack()

    @property
    def condition(self) -> str:
        """Its state in a word; ``pausing`` until it really stands still."""
        is_pausing = self._pausing is not None and not self._pausing.done()
        return "pausing" if is_pausing and self.state is State.PAUSED else self.state.value

    @property
    def is_awake(self) -> bool:
        """Whether it can be called at once."""
        return self._pausing is None

    def info(self) -> InstanceInfo:
        """Say who it is, for events."""
        return InstanceInfo(
            id=self.id,
            handler=self.code.version.name,
            version=self.code.version.version,
            cold_start_s=self.cold_start_s,
        )

    async def start(self, pool: SandboxPool, zygote: Zygote | None) -> Sequence[ImportRecord]:
        """Make the sandbox, let the guest load the handler, and return what that imported.

        Raises:
            HandlerError: The handler cannot be loaded.
            SandboxError: The sandbox cannot be made, died or took too long.
        """
        limits = self.code.settings.limits
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        # Promised before it is made: make_scratch may be cancelled half way, and removing nothing is allowed.
        self._undo.push_async_callback(pool.remove_scratch, self._folder)
        await pool.make_scratch(self._folder, limits)
        rendezvous = self._undo.enter_context(Rendezvous(self._folder))
        spec = SandboxSpec(
            id=self.id,
            handler=self.code.version.name,
            code=self.code.folder,
            scratch=self._folder,
            limits=limits,
            network=self.code.settings.network,
            packages=self.code.packages,
            zygote=zygote,
        )
        watch = await self._created(pool, spec)
        await self.channel.open(await self._connected(rendezvous, watch))
        try:
            return await self.channel.handshake(self._init(), limits.timeout_s)
        except InstanceDiedError as error:
            raise await self.died("while it loaded its handler") from error

    async def _created(self, pool: SandboxPool, spec: SandboxSpec) -> asyncio.Task[None]:
        creating = asyncio.ensure_future(pool.create(spec))
        try:
            self.sandbox = await asyncio.shield(creating)
        except asyncio.CancelledError:
            # Cutting a backend off in the middle could leave a sandbox that nobody knows: let it finish.
            await asyncio.wait({creating})
            if creating.exception() is None:
                await creating.result().destroy()
            raise
        watch = asyncio.ensure_future(self._watch(self.sandbox))
        self._undo.push_async_callback(_finished, watch)
        self._undo.push_async_callback(self.sandbox.destroy)
        self._undo.callback(self.channel.close)
        return watch

    async def _connected(self, rendezvous: Rendezvous, watch: asyncio.Task[None]) -> socket.socket:
        accepting = asyncio.ensure_future(rendezvous.accept())
        try:
            await asyncio.wait(
                {accepting, watch}, timeout=_CONNECT_S, return_when=asyncio.FIRST_COMPLETED
            )
            if accepting.done():
                return accepting.result()
            if watch.done():
                raise await self.died("before its guest connected")
            raise SandboxError(f"{self.label} did not connect within {_CONNECT_S:g} s")
        finally:
            if not accepting.done():
                accepting.cancel()
                await asyncio.wait({accepting})

    def _init(self) -> bytes:
        code = self.code
        return _encode(
            {
                "protocol": protocol.VERSION,
                "handler": code.version.name,
                "entry": code.settings.entry,
                "sys_path": [f"/packages/{wheel.folder}" for wheel in code.wanted.wheels],
                "site_dirs": [
                    f"/packages/{wheel.folder}" for wheel in code.wanted.wheels if wheel.pth
                ],
                "environment": code.settings.environment,
                "max_result_bytes": int(code.settings.limits.max_result_mb * MIB),
                "measure_imports": bool(code.wanted.wheels),
            }
        )

    async def _watch(self, sandbox: Sandbox) -> None:
        self.death = await sandbox.wait()
        # A process that the handler started may hold the connection open after the guest's death.
        self.channel.close("its sandbox died")

    def _on_lost(self) -> None:
        self._on_death(self)

    async def learn_death(self) -> None:
        """Wait a moment for the backend to say how it died; nothing comes of it when it lives."""
        if self.death is None and self.sandbox is not None:
            waiting = asyncio.ensure_future(self.sandbox.wait())
            await asyncio.wait({waiting}, timeout=_DEATH_S)
            if waiting.done() and waiting.exception() is None:
                self.death = waiting.result()
            waiting.cancel()

    async def died(self, when: str = "") -> InstanceDiedError:
        """Make the error for who found it dead."""
        await self.learn_death()
        when = f" {when}" if when else ""
        if self.death is None:
            return InstanceDiedError(
                f"{self.label} ended its connection{when}", details={"instance": self.id}
            )
        details: dict[str, object] = {
            "instance": self.id,
            "death": msgspec.to_builtins(self.death) | {"message": str(self.death)},
        }
        # Once it has loaded, what it prints may belong to other requests.
        if self.state is State.STARTING and (last := tail(self._folder, "stderr").strip()):
            details["stderr"] = last
        return InstanceDiedError(f"{self.label} died{when}: {self.death}", details=details)

    def pause(self, paused: Callable[[Instance], None]) -> None:
        """Begin to freeze it; it may be taken meanwhile, ``wake`` then waits.

        Args:
            paused: Called with it when it is frozen.
        """
        self.state = State.PAUSED
        self._pausing = asyncio.ensure_future(self._pause(paused))

    async def _pause(self, paused: Callable[[Instance], None]) -> None:
        if self.sandbox is None:
            return
        try:
            await self.sandbox.pause()
        except OlcoreError as error:
            # Dead, which the watch tells too, or a backend without the means: it goes on serving unfrozen.
            log.warning("%s cannot be paused: %s", self.label, error)
            self.can_pause = False
        else:
            paused(self)

    async def wake(self) -> None:
        """Let it run again.

        Raises:
            SandboxError: It is dead.
        """
        pausing = self._pausing
        if pausing is None or self.sandbox is None:
            return
        await asyncio.wait({pausing})
        await self.sandbox.resume()
        self._pausing = None

    async def destroy(self) -> None:
        """Kill it, and undo all that was made for it; never raises."""
        self.state = State.DEAD
        if self._pausing is not None:
            # A sandbox may be destroyed at any time; waiting only keeps the task from outliving it.
            self._undo.push_async_callback(_finished, self._pausing)
        try:
            await self._undo.aclose()
        except Exception:
            # Destroying never raises, says the interface; a backend that does must not leak the rest's accounting.
            log.exception("%s: clearing away failed", self.label)


async def _finished(task: asyncio.Task[None]) -> None:
    await asyncio.wait({task}, timeout=_DEATH_S)
    task.cancel()
