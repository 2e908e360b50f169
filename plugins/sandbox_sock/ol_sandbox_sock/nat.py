"""Runs the network ``nat`` in a thread of its own, for the event loop.

pyroute2's blocking client raises where a loop runs, and its other one fails under uvloop; so one thread owns the netlink
socket, and what instances need of it comes one after the other (as it would anyway, under one lock of the kernel's).
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from ol_sandbox_sock.network import Nat
from olcore.errors import BackendUnusableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ol_sandbox_sock.network import Address

Result = TypeVar("Result")


class NatThread:
    """The network of one worker; see ``Nat`` for what each call does and raises."""

    def __init__(self) -> None:
        self._nat = Nat()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="netlink")

    async def _run(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def start(self, label: str, pool: str, nameservers: Sequence[str]) -> None:
        """Set up the host's side.

        Raises:
            BackendUnusableError: The machine lacks something; nothing is left half-made.
        """
        reason = await self._run(Nat.why_unusable)
        if reason is not None:
            raise BackendUnusableError(reason, hint='or: olcore setconf \'{"network": "none"}\'')
        await self._run(lambda: self._nat.start(label, pool, nameservers))

    async def attach(self, number: int, netns_fd: int) -> Address:
        """Give a network namespace its interface."""
        return await self._run(lambda: self._nat.attach(number, netns_fd))

    async def detach(self, number: int) -> None:
        """Free an instance's interface and address."""
        await self._run(lambda: self._nat.detach(number))

    async def close(self) -> None:
        """Undo everything, and end the thread."""
        await self._run(self._nat.close)
        self._thread.shutdown()
