"""The contract of a scheduler: pure decisions over a snapshot, without I/O, clock or randomness of its own.

The core calls ``place`` for each request, on the event loop, so it has microseconds. What happens between decisions is
the core's: a request that waits is served by the first instance that becomes free, in order of arrival; a new instance
serves the oldest waiting request, whoever caused it to be made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

import msgspec

from olcore.interfaces.sandbox import Settings


class IdleInstance(msgspec.Struct, frozen=True, gc=False):
    """One instance that could serve now."""

    id: str
    idle_since_s: float
    """On the same clock as ``HandlerLoad.now_s``."""
    paused: bool


class HandlerLoad(msgspec.Struct, frozen=True, gc=False):
    """The state of one handler, newest version only, at the moment of a decision. Read it, never change or keep it."""

    handler: str
    now_s: float
    """Seconds on a monotonic clock."""
    idle: Sequence[IdleInstance]
    """In the order in which they became idle, the most recently used last."""
    busy: int
    """Instances that serve a request."""
    starting: int
    """Instances on their way."""
    waiting: int
    """Requests in the queue, without the one to be placed."""
    max_instances: int
    max_queue: int
    typical_s: float
    """Moving average of the handler's run time in seconds; 0 before the first."""
    idle_timeout_s: float = 300.0
    """The configuration's wish: an instance that is idle for so long is destroyed."""


class Reuse(msgspec.Struct, frozen=True, gc=False):
    """Give the request to this idle instance."""

    instance_id: str


class Create(msgspec.Struct, frozen=True, gc=False):
    """Put the request in the queue, and start one more instance."""


class Wait(msgspec.Struct, frozen=True, gc=False):
    """Put the request in the queue."""


class Reject(msgspec.Struct, frozen=True, gc=False):
    """Answer 429."""

    retry_after_s: float


Placement = Reuse | Create | Wait | Reject


class Scheduler(ABC):
    """Decides where requests go and which idle instances go away."""

    @abstractmethod
    def place(self, load: HandlerLoad) -> Placement:
        """Decide for one new request.

        ``Wait`` when nothing is busy or starting would wait for ever: the core treats it as ``Create``. ``Create`` over
        ``max_instances`` is treated as ``Wait``.
        """

    @abstractmethod
    def retire(self, loads: Sequence[HandlerLoad]) -> Sequence[str]:
        """Name the idle instances to destroy now; called about once a second with every handler's load."""

    @abstractmethod
    def evict(self, loads: Sequence[HandlerLoad], want: int) -> Sequence[str]:
        """Name up to *want* idle instances to destroy, best first, because memory is short."""


def _usable(_settings: object) -> str | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerBackend(Generic[Settings]):
    """The description of a scheduler."""

    name: str
    summary: str
    settings: type[Settings]
    make: Callable[[Settings], Scheduler]
    why_unusable: Callable[[Settings], str | None] = _usable
