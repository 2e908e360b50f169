"""Counts the memory that instances may use together, and lets creations wait for their share.

It counts limits, not use: what an instance may take is taken, so that the machine holds even when all take theirs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from olcore.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, eq=False)
class _Claim:
    memory_mb: int
    owner: str
    since_s: float
    granted: asyncio.Future[None]


class MemoryPool:
    """A number of MiB, given out in order of asking.

    Args:
        limit_mb: What there is.
        press: Called when somebody has to wait: make room, as far as that is possible now.
    """

    def __init__(self, limit_mb: int, press: Callable[[], None]) -> None:
        self.limit_mb = limit_mb
        self.used_mb = 0
        self.freeing_mb = 0
        """Part of ``used_mb``: what instances that are being destroyed will give back."""
        self._press = press
        self._waiting: deque[_Claim] = deque()

    @property
    def shortage_mb(self) -> int:
        """How much must be freed, besides what is being freed, before the first that waits has enough."""
        if not self._waiting:
            return 0
        return self.used_mb - self.freeing_mb + self._waiting[0].memory_mb - self.limit_mb

    @property
    def is_waiting(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    def is_due(self, owner: str, since_s: float) -> bool:
        """Whether somebody else than *owner* lacks memory and has waited since before *since_s*."""
        if self.shortage_mb <= 0:
            return False
        first = self._waiting[0]
        return first.owner != owner and first.since_s < since_s

    async def reserve(self, memory_mb: int, owner: str, since_s: float) -> None:
        """Take *memory_mb*, waiting for it if need be.

        Args:
            memory_mb: How much.
            owner: For whom.
            since_s: When the request arrived that needs it.

        Raises:
            SandboxError: It is more than there is altogether.
        """
        if memory_mb > self.limit_mb:
            raise SandboxError(
                f"an instance of {memory_mb} MiB does not fit into the worker's {self.limit_mb} MiB",
                hint="lower limits.memory_mb or raise memory_pool_mb",
            )
        if not self._waiting and self.used_mb + memory_mb <= self.limit_mb:
            self.used_mb += memory_mb
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        claim = _Claim(memory_mb, owner, since_s, granted)
        self._waiting.append(claim)
        self._press()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                self._waiting.remove(claim)
                self._grant()
            else:
                self.release(memory_mb)
            raise

    def release(self, memory_mb: int) -> None:
        """Give *memory_mb* back."""
        self.used_mb -= memory_mb
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self.used_mb + self._waiting[0].memory_mb <= self.limit_mb:
            if self._waiting[0].granted.done():  # cancelled; it takes itself out
                return
            claim = self._waiting.popleft()
            self.used_mb += claim.memory_mb
            claim.granted.set_result(None)
        # The first may have changed, and what was pressed for the one before need not do.
        if self._waiting:
            self._press()
