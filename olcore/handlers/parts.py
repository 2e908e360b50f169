"""What all handlers of one worker share."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from olcore.cluster import WorkerDir
from olcore.handlers.memory import MemoryPool
from olcore.handlers.options import Options
from olcore.handlers.snapshots import Snapshots
from olcore.interfaces import (
    Death,
    DeathCause,
    DestroyReason,
    ImportCache,
    SandboxPool,
    Scheduler,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from olcore.handlers.instance import Instance

_DEATHS_KEPT = 50


@dataclass(slots=True, kw_only=True)
class Parts:
    """The worker's parts, as one handler needs them."""

    pool: SandboxPool
    scheduler: Scheduler
    import_cache: ImportCache | None
    options: Options
    worker_dir: WorkerDir
    emit: Callable[..., None]
    memory: MemoryPool
    freed: Callable[[str], None]
    """Told the name of a handler that has lost an instance."""
    idled: Callable[[], None]
    """Told that an instance became idle while a creation waits for memory."""
    snapshots: Snapshots | None = None
    """Where the pool has zygotes."""
    is_closing: bool = False
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    deaths: deque[dict[str, object]] = field(default_factory=lambda: deque(maxlen=_DEATHS_KEPT))
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run *work* beside everything else; ``settle`` waits for it."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def settle(self) -> None:
        """Wait for all that was spawned, and for what that spawned."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def bury(self, instance: Instance, reason: str) -> None:
        """Destroy *instance*, give its memory back, and tell how it ended."""
        had_sandbox = instance.sandbox is not None
        if reason == "died":
            # The end of the connection is often heard of first, and destroying would overwrite how it ended.
            await instance.learn_death()
        await instance.destroy()
        self.memory.release(instance.memory_mb)
        self.memory.freeing_mb -= instance.memory_mb
        if had_sandbox:
            death = instance.death or Death(cause=DeathCause.DESTROYED)
            self._remember(instance, reason, death)
            self.emit(
                "ol_instance_destroyed",
                instance=instance.info(),
                reason=DestroyReason(reason=reason, death=death),
            )

    def _remember(self, instance: Instance, reason: str, death: Death) -> None:
        self.deaths.append(
            {
                "id": instance.id,
                "handler": instance.code.version.name,
                "version": instance.code.version.version,
                "reason": reason,
                "death": msgspec.to_builtins(death),
                "message": str(death),
                "served": instance.served,
                "at": time.time(),
            }
        )
