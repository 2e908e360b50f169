"""The scheduler ``lifo``: the most recently used idle instance, else a new one, else the queue.

Taking the most recently used one keeps few instances warm and lets the others grow old, so that they retire by
themselves when the load falls.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import msgspec

from olcore.interfaces import Create, HandlerLoad, Placement, Reject, Reuse, Scheduler, Wait

if TYPE_CHECKING:
    from collections.abc import Sequence

_CREATE = Create()
_WAIT = Wait()
_LONGEST_RETRY_S = 60.0


class LifoSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nothing to set: ``max_instances``, ``max_queue`` and ``idle_timeout_s`` are the core's, for every scheduler."""


class Lifo(Scheduler):
    """Decides by the load alone; it keeps no state."""

    def place(self, load: HandlerLoad) -> Placement:
        """Take the last idle instance, else create up to ``max_instances``, else wait up to ``max_queue``."""
        if load.idle:
            return Reuse(load.idle[-1].id)
        if load.busy + load.starting < load.max_instances:
            return _CREATE
        # Each instance on its way will take one of those that wait, so only the others fill the queue.
        if load.waiting - load.starting < load.max_queue:
            return _WAIT
        return Reject(self._retry_after_s(load))

    def retire(self, loads: Sequence[HandlerLoad]) -> Sequence[str]:
        """Name what has been idle for ``idle_timeout_s``."""
        return [
            instance.id
            for load in loads
            for instance in load.idle
            if load.now_s - instance.idle_since_s >= load.idle_timeout_s
        ]

    def evict(self, loads: Sequence[HandlerLoad], want: int) -> Sequence[str]:
        """Name what has been idle for longest, of whichever handler."""
        every = ((instance.idle_since_s, instance.id) for load in loads for instance in load.idle)
        return [instance_id for _, instance_id in heapq.nsmallest(want, every)]

    @staticmethod
    def _retry_after_s(load: HandlerLoad) -> float:
        # The time until the queue of now has been served; at least a second, the least that Retry-After can say.
        queue_s = load.typical_s * (load.waiting + 1) / max(1, load.max_instances)
        return min(max(1.0, queue_s), _LONGEST_RETRY_S)
