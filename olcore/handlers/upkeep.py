"""Looks after idle instances of all handlers: freezes them, retires them, and evicts them when memory is short."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from olcore.handlers.handler import Handler
    from olcore.handlers.parts import Parts

log = logging.getLogger(__name__)

_SWEEP_S = 1.0
_PRESSURE_EVERY_S = 1.0


class Upkeep:
    """The housekeeping of one manager.

    Args:
        handlers: The manager's, by name; those that have become empty are dropped from it.
        parts: What they share.
    """

    def __init__(self, handlers: dict[str, Handler], parts: Parts) -> None:
        self._handlers = handlers
        self._parts = parts
        self._sweeper: asyncio.Task[None] | None = None
        self._pressure_told_s = 0.0

    def start(self) -> None:
        """Begin to look after them."""
        self._sweeper = asyncio.ensure_future(self._sweep())

    async def close(self) -> None:
        """Stop; idempotent."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait({self._sweeper})

    def press(self) -> None:
        """Evict idle instances until the first creation that waits for memory has enough."""
        memory = self._parts.memory
        if memory.shortage_mb <= 0:
            return
        now_s = time.monotonic()
        if now_s - self._pressure_told_s >= _PRESSURE_EVERY_S:
            self._pressure_told_s = now_s
            self._parts.emit("ol_memory_pressure", used_mb=memory.used_mb, limit_mb=memory.limit_mb)
        loads = [handler.load(now_s) for handler in self._handlers.values() if handler.idle]
        want = sum(len(load.idle) for load in loads)
        for instance_id in list(self._parts.scheduler.evict(loads, want)):
            if memory.shortage_mb <= 0:
                return
            self._end(instance_id, "evicted")

    async def _sweep(self) -> None:
        pause_s = self._parts.options.pause_after_ms / 1e3
        # An instance is frozen at most half its waiting time late.
        every_s = max(0.05, min(_SWEEP_S, pause_s / 2)) if pause_s else _SWEEP_S
        retired_s = 0.0
        while True:
            await asyncio.sleep(every_s)
            try:
                now_s = time.monotonic()
                if pause_s:
                    for handler in self._handlers.values():
                        handler.pause_idle(now_s - pause_s)
                if now_s - retired_s >= _SWEEP_S:
                    retired_s = now_s
                    self._retire(now_s)
            except Exception:
                # A scheduler's bug must not end the care for idle instances.
                log.exception("looking after idle instances failed")

    def _retire(self, now_s: float) -> None:
        loads = [handler.load(now_s) for handler in self._handlers.values() if handler.idle]
        for instance_id in list(self._parts.scheduler.retire(loads)):
            self._end(instance_id, "idle")
        for name in [name for name, handler in self._handlers.items() if handler.is_empty]:
            del self._handlers[name]

    def _end(self, instance_id: str, reason: str) -> None:
        for handler in self._handlers.values():
            instance = handler.idle.get(instance_id)
            if instance is not None:
                handler.end(instance, reason)
                return
