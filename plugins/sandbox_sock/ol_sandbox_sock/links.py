"""The worker's end of a packet socket (guest/messages.py), on the event loop."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any

from ol_sandbox_sock.guest import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Link:
    """One end of a SOCK_SEQPACKET pair that this object owns; one task sends and one receives at a time."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._loop = asyncio.get_running_loop()

    @staticmethod
    def pair() -> tuple[Link, socket.socket]:
        """Make a pair: our end, and the one to give away."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return Link(ours), theirs

    async def send(self, packet: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send one packet; returns at once unless the other end is far behind.

        Raises:
            OSError: The other end is gone.
        """
        while True:
            try:
                messages.send(self._end, packet, fds)
            except BlockingIOError:
                await self._ready(self._loop.add_writer, self._loop.remove_writer)
            else:
                return

    async def receive(self, most_fds: int = 0) -> tuple[dict[str, Any] | None, list[int]]:
        """Receive one packet and at most so many descriptors; ``None`` when the other end is gone or makes no sense."""
        while True:
            try:
                packet, fds = messages.receive(self._end)
            except BlockingIOError:
                await self._ready(self._loop.add_reader, self._loop.remove_reader)
            except ConnectionError:
                return None, []
            else:
                # A stranger's code may sit at the other end: what it sends unasked must not pile up in the worker.
                kept = fds[:most_fds] if packet is not None else []
                for fd in fds[len(kept) :]:
                    os.close(fd)
                return packet, kept

    async def _ready(self, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
        fd = self._end.fileno()
        ready = self._loop.create_future()

        def _now() -> None:
            if not ready.done():
                ready.set_result(None)

        add(fd, _now)
        try:
            await ready
        finally:
            remove(fd)

    def close(self) -> None:
        """Hang up; idempotent."""
        if self._end.fileno() >= 0:
            self._loop.remove_reader(self._end.fileno())
            self._end.close()
