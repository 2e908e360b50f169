"""The worker's end of a zygote: asks it for cells, and learns from it how they ended."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from ol_sandbox_sock.guest.messages import BROKEN
from olcore.errors import SandboxError, SandboxUnavailableError
from olcore.interfaces import Death, DeathCause, GuestInfo

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from ol_sandbox_sock.links import Link

_log = logging.getLogger(__name__)
_READY_TIMEOUT_S = 30.0


class _Ended(msgspec.Struct, rename={"name": "ended"}):
    """What a zygote says when a child of its ends, or could not be made."""

    name: str
    status: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)] = 0
    error: str = ""

    def death(self) -> Death:
        """Say it as the core does; ValueError when there is no such status."""
        if self.error:
            return Death(cause=DeathCause.LOST, detail=self.error)
        code = os.waitstatus_to_exitcode(self.status)
        if code >= 0:
            detail = "it could not be set up; the zygote's log tells why" if code == BROKEN else ""
            return Death(cause=DeathCause.EXITED, exit_code=code, detail=detail)
        names = {each.value: each.name for each in signal.Signals}  # not of all real-time signals
        return Death(cause=DeathCause.SIGNALED, signal=names.get(-code, f"signal {-code}"))


class ZygoteLink:
    """The control connection of one zygote.

    The zygote, not the worker, is the parent of its cells, so only its word tells exit codes. When it goes, the kernel
    has killed its cells with it: they end as lost.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._ends: dict[str, asyncio.Future[Death]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._callbacks: list[Callable[[], None]] = []
        self.lost = asyncio.Event()

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call *callback* once when it is gone."""
        self._callbacks.append(callback)

    async def ready(self) -> GuestInfo:
        """Wait until it can be forked, and say which Python it is.

        Raises:
            SandboxUnavailableError: It ended, or took too long.
        """
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                packet, _ = await self._link.receive()
        except TimeoutError:
            packet = None
        try:
            info = msgspec.convert(packet and packet.get("ready"), GuestInfo)
        except msgspec.ValidationError as error:
            raise SandboxUnavailableError(
                "the zygote did not start", hint="its log tells why: sock/zygote*.log"
            ) from error
        self._reading = asyncio.create_task(self._read())
        return info

    async def _read(self) -> None:
        while True:
            packet, _ = await self._link.receive()
            if packet is None:
                break
            try:
                ended = msgspec.convert(packet, _Ended)
                death = ended.death()
            except ValueError as error:  # a stranger's code may speak for a package zygote
                _log.warning("a zygote said %.200r: %s", packet, error)
                break
            end = self._ends.pop(ended.name, None)
            if end is not None and not end.done():
                end.set_result(death)
        self._lose()

    def _lose(self) -> None:
        if self.lost.is_set():
            return
        self.lost.set()
        for callback in self._callbacks:
            callback()
        for end in self._ends.values():
            if not end.done():
                end.set_result(Death(cause=DeathCause.LOST, detail="its zygote ended"))
        self._ends.clear()

    async def fork(
        self, name: str, packet: dict[str, Any], theirs: socket.socket, fds: list[int]
    ) -> asyncio.Future[Death]:
        """Ask for one cell or package zygote, and return the future of its death.

        Args:
            name: Unique for this zygote.
            packet: ``fork``: what to make, and what that is told (guest/cell.py, guest/packages.py).
            theirs: Its end of its link; closed here.
            fds: More descriptors for it; closed here.

        Raises:
            SandboxUnavailableError: The zygote is gone.
        """
        end = asyncio.get_running_loop().create_future()
        self._ends[name] = end
        try:
            await self._link.send({"name": name, **packet}, [theirs.fileno(), *fds])
        except OSError as error:
            self._ends.pop(name, None)
            raise SandboxUnavailableError(
                f"the zygote is gone: {error.strerror}", retry_after_s=1
            ) from error
        finally:
            theirs.close()
            for fd in fds:
                os.close(fd)
        return end

    def close(self) -> None:
        """Hang up, which ends the zygote and all it forked."""
        if self._reading is not None:
            self._reading.cancel()
        self._lose()
        self._link.close()


def failed(death: Death) -> SandboxError:
    """Make the error for a cell that ended before it was handed out."""
    return SandboxError(f"the sandbox could not be made: {death}")
