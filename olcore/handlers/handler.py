"""One handler: its queue and its instances.

The scheduler decides for each request; this module carries out. A request that waits is served, in order of arrival, by
whichever instance becomes free first; a creation that fails fails the oldest request that waited for it, at once.
Code that changes begins a new *generation*: idle instances of the old one go, busy ones finish their request and go, and
a request that arrived after the change is never served by one of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from olcore.errors import (
    DrainingError,
    HandlerError,
    InstanceTimeoutError,
    OlcoreError,
    QueueFullError,
    SandboxError,
)
from olcore.handlers.instance import Instance, State
from olcore.interfaces import Create, HandlerLoad, IdleInstance, Network, Reject, Reuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from olcore.handlers.code import Code
    from olcore.handlers.parts import Parts
    from olcore.interfaces import Zygote

log = logging.getLogger(__name__)

# How much the newest run counts in the moving average of run times.
_NEWEST = 0.1


@dataclass(slots=True, eq=False)
class _Waiter:
    generation: int
    since_s: float
    future: asyncio.Future[Instance]


class Handler:
    """The queue and the instances of the handler that *code* is the newest version of."""

    def __init__(self, code: Code, parts: Parts) -> None:
        self.name = code.version.name
        self.code = code
        self.generation = 0
        self.instances: dict[str, Instance] = {}
        """All that live, of every generation, until they are destroyed."""
        self.idle: dict[str, Instance] = {}
        """Of the newest generation, the most recently used last."""
        self._views: list[IdleInstance] = []  # of idle, in the same order, for the scheduler
        self._busy = 0  # these two count the newest generation
        self._starting = 0
        self._queue: deque[_Waiter] = deque()
        self._creations: dict[asyncio.Task[None], Code] = {}
        self._typical_s = 0.0
        self._parts = parts

    @property
    def is_empty(self) -> bool:
        """Whether nothing would be lost with it."""
        return not (self.instances or self._queue or self._creations)

    @property
    def versions(self) -> set[str]:
        """The versions whose code must stay."""
        codes = [instance.code for instance in self.instances.values()]
        return {code.version.version for code in [*codes, *self._creations.values()]}

    def load(self, now_s: float, *, placing: int = 0) -> HandlerLoad:
        """Describe the newest generation for the scheduler; *placing* requests of the queue are not counted."""
        options = self._parts.options
        return HandlerLoad(
            self.name,
            now_s,
            self._views,
            self._busy,
            self._starting,
            len(self._queue) - placing,
            options.max_instances,
            options.max_queue,
            self._typical_s,
            options.idle_timeout_s,
        )

    def update(self, code: Code) -> None:
        """Serve *code* from now on."""
        self.code = code
        self.generation += 1
        self._busy = self._starting = 0
        for instance in list(self.idle.values()):
            self.end(instance, "replaced")

    async def acquire(self, now_s: float) -> Instance:
        """Get an instance for one request; give it back with ``release`` or ``end``.

        Raises:
            QueueFullError: It could not even wait.
            OlcoreError: The instance that was made for it could not be.
        """
        while True:
            instance = self._place(now_s)
            if instance is None:
                instance = await self._queued(now_s)
            if instance.is_awake:
                return instance
            try:
                await instance.wake()
            except SandboxError:
                # It died in its sleep, before it was told anything: another one can serve.
                self.end(instance, "died")
            except BaseException:
                self.end(instance, "abandoned")
                raise
            else:
                return instance

    def release(self, instance: Instance, ran_s: float) -> None:
        """Take an instance back that answered after *ran_s* seconds."""
        if instance.state is not State.BUSY:
            return  # it died meanwhile
        if instance.generation == self.generation:
            self._busy -= 1
            typical_s = self._typical_s
            self._typical_s = typical_s + _NEWEST * (ran_s - typical_s) if typical_s else ran_s
        instance.served += 1
        if instance.code.settings.reuse_sandbox:
            self._offer(instance)
        else:
            instance.state = State.IDLE  # no longer counted as busy
            self.end(instance, "single_use")

    def end(self, instance: Instance, reason: str) -> None:
        """Take *instance* out of service for ever, and destroy it in the background; idempotent."""
        state = instance.state
        if state is State.DEAD:
            return
        instance.state = State.DEAD
        if self.idle.pop(instance.id, None) is not None:
            self._views.remove(instance.view)
        elif state is State.BUSY and instance.generation == self.generation:
            self._busy -= 1
        self._bury(instance, reason)
        self._replenish()

    def pause_idle(self, before_s: float) -> None:
        """Freeze what has been idle since *before_s* or longer."""
        for instance in self.idle.values():
            if instance.view.idle_since_s > before_s:
                break  # they are in the order of becoming idle
            if instance.state is State.IDLE and instance.can_pause:
                index = self._views.index(instance.view)
                instance.view = IdleInstance(instance.id, instance.view.idle_since_s, paused=True)
                self._views[index] = instance.view
                instance.pause(self._paused)

    def close(self, why: Callable[[], OlcoreError]) -> None:
        """Turn away whoever waits, and end every instance."""
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.future.done():
                waiter.future.set_exception(why())
        for creation in self._creations:
            creation.cancel()
        for instance in list(self.instances.values()):
            if instance.state is not State.STARTING:
                self.end(instance, "stopping")

    def _paused(self, instance: Instance) -> None:
        self._parts.emit("ol_instance_paused", instance=instance.info())

    def _place(self, now_s: float) -> Instance | None:
        """Take an idle instance for a request, or prepare that it waits for one."""
        load = self.load(now_s)
        placement = self._parts.scheduler.place(load)
        if type(placement) is Reuse:
            instance = self.idle.get(placement.instance_id)
            if instance is not None:
                return self._taken(instance)
        elif type(placement) is Reject:
            raise QueueFullError(
                f"every instance of {self.name!r} is busy, and {load.waiting} requests wait already",
                retry_after_s=placement.retry_after_s,
            )
        at_work = self._busy + self._starting
        alive = at_work + len(self.idle)
        if not alive or (type(placement) is Create and alive < load.max_instances):
            self._create(now_s)
        elif not at_work:
            # Whatever the scheduler said, to wait would be to wait for ever.
            return self._taken(self.idle[next(reversed(self.idle))])
        return None

    def _taken(self, instance: Instance) -> Instance:
        del self.idle[instance.id]
        views = self._views
        if views[-1] is instance.view:
            views.pop()
        else:
            views.remove(instance.view)
        instance.state = State.BUSY
        self._busy += 1
        return instance

    async def _queued(self, now_s: float) -> Instance:
        waiter = _Waiter(self.generation, now_s, asyncio.get_running_loop().create_future())
        self._queue.append(waiter)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            future = waiter.future
            if not future.done() or future.cancelled():
                self._queue.remove(waiter)
            elif future.exception() is None:
                self._give_back(future.result())
            raise

    def _give_back(self, instance: Instance) -> None:
        if instance.state is not State.BUSY:
            return
        if instance.generation == self.generation:
            self._busy -= 1
        self._offer(instance)

    def _offer(self, instance: Instance) -> None:
        """Give a free instance to the oldest request that waits, or let it be idle."""
        is_newest = instance.generation == self.generation
        memory = self._parts.memory
        while self._queue and self._queue[0].generation <= instance.generation:
            if memory.is_waiting and memory.is_due(self.name, self._queue[0].since_s):
                # Another handler's request has waited for longer, and needs the memory of this instance.
                instance.state = State.IDLE
                self.end(instance, "evicted")
                return
            waiter = self._queue.popleft()
            if not waiter.future.done():
                instance.state = State.BUSY
                if is_newest:
                    self._busy += 1
                waiter.future.set_result(instance)
                return
        instance.state = State.IDLE
        if self._parts.is_closing or not is_newest:
            self.end(instance, "stopping" if self._parts.is_closing else "replaced")
            return
        if instance.is_awake:
            instance.view = IdleInstance(instance.id, time.monotonic(), paused=False)
        else:  # woken by nobody: its caller was cancelled while it waited
            instance.state = State.PAUSED
        self.idle[instance.id] = instance
        self._views.append(instance.view)
        if memory.is_waiting:
            self._parts.idled()

    def _create(self, now_s: float) -> None:
        if self._parts.is_closing:
            # Its code came when the creations of others had been cancelled already: nobody would cancel this one.
            raise DrainingError("the worker is stopping", retry_after_s=1.0)
        self._starting += 1
        task = self._parts.spawn(self._created(self.code, self.generation, now_s))
        self._creations[task] = self.code
        task.add_done_callback(self._creations.pop)

    async def _created(self, code: Code, generation: int, now_s: float) -> None:
        error: OlcoreError
        memory_mb = code.settings.limits.memory_mb
        try:
            await self._parts.memory.reserve(memory_mb, self.name, now_s)
            if not self._queue:  # whoever needed it was served meanwhile, or went away
                self._parts.memory.release(memory_mb)
                self._came(generation)
                return
            instance = await self._started(code, generation, now_s)
        except OlcoreError as failure:
            error = failure
        except asyncio.CancelledError:
            error = DrainingError("the worker is stopping")
        except Exception:
            # A bug, ours or a plugin's: the request must not hang for it.
            log.exception("creating an instance of %r failed", self.name)
            error = SandboxError(f"an instance of {self.name!r} could not be made: see the log")
        else:
            self._came(generation)
            self._offer(instance)
            return
        self._came(generation)
        self._failed(generation, error)

    def _came(self, generation: int) -> None:
        if generation == self.generation:
            self._starting -= 1

    def _failed(self, generation: int, error: OlcoreError) -> None:
        while self._queue and self._queue[0].generation <= generation:
            waiter = self._queue.popleft()
            if not waiter.future.done():
                waiter.future.set_exception(error)
                break
        self._replenish()

    def _replenish(self) -> None:
        """Ask the scheduler about the oldest waiting request anew, because what it may have waited for is gone."""
        if self._parts.is_closing or self._starting >= len(self._queue):
            return
        at_work = self._busy + self._starting
        now_s = time.monotonic()
        if not at_work or (
            at_work < self._parts.options.max_instances
            and type(self._parts.scheduler.place(self.load(now_s, placing=1))) is Create
        ):
            self._create(now_s)

    async def _started(self, code: Code, generation: int, now_s: float) -> Instance:
        zygote, failed = self._zygote(code)
        try:
            instance = await self._attempt(code, generation, now_s, zygote)
        except InstanceTimeoutError:
            raise
        except SandboxError as error:
            if zygote is None:
                raise
            memory_mb = code.settings.limits.memory_mb
            await self._parts.memory.reserve(memory_mb, self.name, now_s)
            instance = await self._attempt(code, generation, now_s, None)
            # It works without, so it was the zygote's fault and not the handler's.
            log.warning("zygote %s is unfit: %s", zygote.id, error)
            failed(zygote, error.message)
            zygote = None
        if self._parts.snapshots is not None:
            self._parts.snapshots.loaded(code, zygote)
        return instance

    def _zygote(self, code: Code) -> tuple[Zygote | None, Callable[[Zygote, str], None]]:
        """Choose what to fork from, and say who is to be told when that fails."""
        cache, snapshots = self._parts.import_cache, self._parts.snapshots
        snapshot = snapshots.choose(code) if snapshots is not None else None
        if snapshots is not None and snapshot is not None:
            return snapshot, partial(snapshots.failed, code)
        # Handlers on the host's network are forked from a zygote that the import cache knows nothing of.
        if cache is not None and code.wanted.wheels and code.settings.network is not Network.HOST:
            return cache.choose(code.wanted), cache.failed
        return None, lambda _zygote, _reason: None

    async def _attempt(
        self, code: Code, generation: int, now_s: float, zygote: Zygote | None
    ) -> Instance:
        parts = self._parts
        number = str(next(parts.numbers))
        folder = parts.worker_dir.handlers / self.name / number
        instance = Instance(number, code, generation, folder, self._lost)
        self.instances[number] = instance
        try:
            imported = await instance.start(parts.pool, zygote)
        except BaseException as error:
            instance.state = State.DEAD
            self._bury(instance, _reason(error))
            raise
        instance.cold_start_s = time.monotonic() - now_s
        parts.emit("ol_instance_created", instance=instance.info())
        if parts.import_cache is not None and code.wanted.wheels:
            parts.import_cache.observe(code.wanted, imported)
        return instance

    def _lost(self, instance: Instance) -> None:
        # One that starts is its starter's affair, and one that is busy its caller's, who first asks how it died.
        if instance.state in (State.IDLE, State.PAUSED):
            self.end(instance, "died")

    def _bury(self, instance: Instance, reason: str) -> None:
        self._parts.memory.freeing_mb += instance.memory_mb
        self._parts.spawn(self._buried(instance, reason))

    async def _buried(self, instance: Instance, reason: str) -> None:
        await self._parts.bury(instance, reason)
        self.instances.pop(instance.id, None)
        self._parts.freed(self.name)
        if self._parts.snapshots is not None:
            self._parts.snapshots.sweep()


def _reason(error: BaseException) -> str:
    if isinstance(error, HandlerError):
        return "load_failed"
    if isinstance(error, InstanceTimeoutError):
        return "timeout"
    return "stopping" if isinstance(error, asyncio.CancelledError) else "died"
