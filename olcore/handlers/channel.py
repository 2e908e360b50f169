"""The host's end of the guest protocol.

One exchange at a time: a frame goes out, one frame comes back and resolves one future. What comes in was written by a
process that runs the handler's code, so it is believed in nothing: a frame that nobody asked for, an unknown kind, a
payload over the limit or JSON of another shape ends the connection, and with it the instance.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING, TypeVar, cast

import msgspec

from olcore.errors import (
    BadEventError,
    HandlerInvalidError,
    HandlerLoadError,
    HandlerRaisedError,
    InstanceDiedError,
    InstanceTimeoutError,
    OlcoreError,
    ResultError,
    SandboxError,
)
from olcore.guest import protocol
from olcore.interfaces import ImportRecord

if TYPE_CHECKING:
    from collections.abc import Callable

_Value = TypeVar("_Value")

_HEADER = protocol.HEADER.size
_unpack = protocol.HEADER.unpack_from

# An error with its traceback, or the import times of a large package, must fit even where results are kept small.
_LEAST_PAYLOAD = 4 << 20


# The kernel resets a Unix connection, instead of ending it, when its other end is closed with something unread, and
# refuses to write to one that is closed. A guest reads an event whole before it calls the handler.
_UNREAD = (ConnectionResetError, BrokenPipeError)


class _Hello(msgspec.Struct, frozen=True):
    protocol: int
    python: str = ""


class _Ready(msgspec.Struct, frozen=True):
    load_ms: float = 0.0
    imported: list[tuple[str, str | None, int, int]] = []


class _GuestError(msgspec.Struct, frozen=True):
    code: str
    message: str
    type: str = ""
    traceback: str = ""
    position: int | None = None


_decode_hello = msgspec.json.Decoder(_Hello).decode
_decode_ready = msgspec.json.Decoder(_Ready).decode
_decode_error = msgspec.json.Decoder(_GuestError).decode


class Channel(asyncio.Protocol):
    """One connection to one guest.

    Args:
        label: Who is at the other end, for messages: ``instance 3 of 'hello'``.
        max_result_bytes: The largest result to accept.
        on_lost: Called once when the connection has ended, by whomever.
    """

    __slots__ = (
        "_buffer",
        "_connection",
        "_doing",
        "_due_s",
        "_expects",
        "_fires_s",
        "_hello",
        "_limit_s",
        "_loop",
        "_lost",
        "_max_payload",
        "_needed",
        "_on_lost",
        "_timer",
        "_transport",
        "_waiter",
        "is_unread",
        "label",
    )

    def __init__(self, label: str, max_result_bytes: int, on_lost: Callable[[], None]) -> None:
        self.label = label
        self._max_payload = max(max_result_bytes, _LEAST_PAYLOAD)
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._connection: socket.socket | None = None
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._needed = 0
        self._lost = ""
        self.is_unread = False
        """Whether the guest died before it had read the last event, so that its handler never ran for it."""
        self._timer: asyncio.TimerHandle | None = None
        self._fires_s = 0.0
        self._due_s = 0.0
        self._limit_s = 0.0
        self._doing = ""
        # The guest speaks first, maybe before anybody waits for it.
        self._expects = protocol.HELLO
        self._hello: asyncio.Future[bytes] = self._loop.create_future()
        self._waiter: asyncio.Future[bytes] | None = self._hello

    async def open(self, connection: socket.socket) -> None:
        """Take over *connection*, which has been accepted."""
        self._connection = connection
        await self._loop.connect_accepted_socket(lambda: self, connection)

    async def handshake(self, init: bytes, timeout_s: float) -> list[ImportRecord]:
        """Let the guest load its handler, and return what that imported.

        Args:
            init: The payload of INIT.
            timeout_s: For the loading.

        Raises:
            HandlerLoadError: The handler's code raised; with its traceback.
            HandlerInvalidError: There is no function to call.
            InstanceTimeoutError: Loading took longer than *timeout_s*.
            InstanceDiedError: The connection ended.
            SandboxError: The guest speaks another protocol.
        """
        hello = self._decoded(_decode_hello, await self._said_hello(timeout_s))
        if hello.protocol != protocol.VERSION:
            raise SandboxError(
                f"{self.label} speaks guest protocol {hello.protocol}, and this worker {protocol.VERSION}",
                hint="restart the worker, or use a base made by this version",
            )
        ready = self._decoded(
            _decode_ready,
            await self._exchange(
                protocol.READY, protocol.frame(protocol.INIT, init), timeout_s, "loading"
            ),
        )
        return [
            ImportRecord(module=module, file=file, self_us=self_us, self_kb=self_kb)
            for module, file, self_us, self_kb in ready.imported
        ]

    def call(self, body: bytes, timeout_s: float) -> asyncio.Future[bytes]:
        """Send an event; the future holds the result.

        It fails with BadEventError, HandlerRaisedError or ResultError, after which the guest can be called again; and
        with InstanceTimeoutError or InstanceDiedError, after which it cannot. Neither can it when the future was cancelled.
        """
        return self._exchange(
            protocol.REPLY, protocol.frame(protocol.EVENT, body), timeout_s, "running"
        )

    def close(self, why: str = "its connection was closed") -> None:
        """End the connection and fail whoever waits; idempotent."""
        if not self._lost:
            self._lost = why
            self.is_unread = self.is_unread or self._is_reset()
            if self._transport is not None:
                self._transport.abort()
            self._fail(self._died())
            self._cancel_timer()
            self._on_lost()

    def _is_reset(self) -> bool:
        """Ask the kernel, in case its news has not come through the loop yet."""
        if self._connection is None or self._connection.fileno() < 0:
            return False
        error = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return error in (errno.ECONNRESET, errno.EPIPE)

    async def _said_hello(self, timeout_s: float) -> bytes:
        if not self._hello.done():
            self._set_deadline(timeout_s, "starting")
        return await self._hello

    def _exchange(
        self, expects: int, frame: bytes, timeout_s: float, doing: str
    ) -> asyncio.Future[bytes]:
        waiter: asyncio.Future[bytes] = self._loop.create_future()
        if self._lost or self._transport is None:
            self.is_unread = True
            waiter.set_exception(self._died())
            return waiter
        self._expects = expects
        self._waiter = waiter
        self._set_deadline(timeout_s, doing)
        self._transport.write(frame)
        return waiter

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep *transport*; called by the loop."""
        # uvloop's transports are no subclasses of asyncio's, so this cannot be asked with isinstance.
        self._transport = cast("asyncio.Transport", transport)

    def eof_received(self) -> None:
        """End the connection now; called by the loop, which would drop what is written until it says connection_lost."""
        self.close("it closed its connection")

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail whoever waits; called by the loop."""
        self.is_unread = self.is_unread or isinstance(exc, _UNREAD)
        self.close(f"its connection broke: {exc}" if exc else "it closed its connection")

    def data_received(self, data: bytes) -> None:
        """Take in a part of a frame, nearly always a whole one; called by the loop."""
        buffer = self._buffer
        if buffer:
            buffer += data
            if len(buffer) < self._needed:
                return
            data = bytes(buffer)
        if len(data) < _HEADER:
            self._await_more(data, _HEADER)
            return
        size, kind, flags, _stream = _unpack(data)
        whole = _HEADER + size
        if flags or size > self._max_payload:
            self.close(f"it sent a frame with flags {flags} and {size} bytes")
        elif len(data) < whole:
            self._await_more(data, whole)
        elif len(data) > whole:
            self.close("it sent more than it was asked for")
        else:
            if buffer:
                buffer.clear()
            self._received(kind, data[_HEADER:])

    def _await_more(self, data: bytes, needed: int) -> None:
        if not self._buffer:
            self._buffer += data
        self._needed = needed

    def _received(self, kind: int, payload: bytes) -> None:
        waiter = self._waiter
        if waiter is None:
            self.close("it sent a frame that nobody asked for")
            return
        if kind == self._expects:
            self._settle()
            if not waiter.done():  # it is when its caller was cancelled
                waiter.set_result(payload)
        elif kind == protocol.ERROR and self._expects != protocol.HELLO:
            try:
                error = _translated(_decode_error(payload))
            except msgspec.DecodeError as broken:
                self.close(f"it sent an error that cannot be read: {broken}")
                return
            self._fail(error)
        else:
            self.close(f"it sent a frame of kind {kind}")

    def _settle(self) -> None:
        self._waiter = None

    def _set_deadline(self, timeout_s: float, doing: str) -> None:
        # Making and cancelling a timer costs as much as a tenth of a warm request, and nearly all are for nothing. So one
        # that is set already stays, and when it fires it looks whether anything is due.
        self._due_s = due_s = self._loop.time() + timeout_s
        self._limit_s = timeout_s
        self._doing = doing
        if self._timer is None or self._fires_s > due_s:
            self._cancel_timer()
            self._fires_s = due_s
            self._timer = self._loop.call_at(due_s, self._look_at_deadline)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_at_deadline(self) -> None:
        self._timer = None
        if self._waiter is None and self._hello.done():
            return
        if self._loop.time() < self._due_s:
            self._fires_s = self._due_s
            self._timer = self._loop.call_at(self._due_s, self._look_at_deadline)
        else:
            self._late(self._limit_s, self._doing)

    def _fail(self, error: OlcoreError) -> None:
        waiter = self._waiter
        self._settle()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
            if self._expects == protocol.HELLO:
                waiter.exception()  # nobody may have begun to wait for it, and whoever comes is told anyway

    def _late(self, timeout_s: float, doing: str) -> None:
        self._fail(
            InstanceTimeoutError(
                f"{self.label} was stopped: {doing} took longer than its limit of {timeout_s:g} s",
                hint="raise limits.timeout_s",
                details={"limit_s": timeout_s},
            )
        )

    def _died(self) -> InstanceDiedError:
        return InstanceDiedError(f"{self.label} is gone: {self._lost or 'it never connected'}")

    def _decoded(self, decode: Callable[[bytes], _Value], payload: bytes) -> _Value:
        try:
            return decode(payload)
        except msgspec.DecodeError as error:
            raise SandboxError(f"{self.label} sent what cannot be read: {error}") from error


def _translated(said: _GuestError) -> OlcoreError:
    if said.code in ("load_failed", "handler_raised"):
        kind = HandlerLoadError if said.code == "load_failed" else HandlerRaisedError
        message = f"{said.type}: {said.message}" if said.message else said.type
        return kind(message, details={"type": said.type, "traceback": said.traceback})
    if said.code == "bad_event":
        details = {} if said.position is None else {"position": said.position}
        return BadEventError(said.message, details=dict(details))
    if said.code == "bad_result":
        return ResultError(said.message)
    if said.code == "handler_invalid":
        return HandlerInvalidError(said.message)
    return SandboxError(f"the guest reports {said.code!r}: {said.message}")
