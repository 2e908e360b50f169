"""Answers calls of handlers ahead of Falcon, whose objects for a request and a response cost as much as the rest of the way.

Only the plainest case is dealt with here: a POST that says how long its body is, to a worker that is open, and that ends
well. All else, every error too, goes to Falcon and to the one place that knows each (errors.py): a call that failed here
arrives there with its error in the scope, and ``Run.answer`` raises it again.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from olcore.errors import RequestError
from olcore.http.run import FAILED, PATHS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from olcore.handlers.manager import Manager
    from olcore.http.gate import Gate
    from olcore.http.trace import Tracer

    Scope = dict[str, Any]
    Receive = Callable[[], Awaitable[Mapping[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

_match = re.compile(PATHS).match
_JSON = (b"content-type", b"application/json")


class FastPath:
    """The application: itself for the plain case, *falcon* for all else."""

    def __init__(
        self, falcon: App, manager: Manager, gate: Gate, tracer: Tracer, max_body_bytes: int
    ) -> None:
        self.falcon = falcon
        self._invoke = manager.invoke
        self._gate = gate
        self._named = tracer.named
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request, as ASGI has it."""
        if scope["type"] == "http" and scope["method"] == "POST" and self._gate.is_open:
            path = _match(scope["path"])
            size, sent_id = _told(scope)
            if path is not None and 0 <= size <= self._max_body_bytes:
                await self._answer(scope, receive, send, (path["name"], size, self._named(sent_id)))
                return
        await self.falcon(scope, receive, send)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, call: tuple[str, int, str]
    ) -> None:
        name, size, request_id = call
        try:
            reply = await self._invoke(name, await _body(receive, size), request_id)
        except Exception as error:  # noqa: BLE001 -- whatever it is, errors.py tells it
            scope[FAILED] = (error, request_id)
            await self.falcon(scope, _nothing_more, send)
            return
        outcome = reply.outcome
        cold = ", cold" if reply.invocation.cold else ""
        timing = f"queue;dur={outcome.waited_s * 1e3:.3f}, run;dur={outcome.ran_s * 1e3:.3f}{cold}"
        result = reply.result
        headers = [
            _JSON,
            (b"content-length", b"%d" % len(result)),
            (b"x-request-id", request_id.encode()),
            (b"server-timing", timing.encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": result})


def _told(scope: Scope) -> tuple[int, str | None]:
    """Find how long the body is, -1 when that is not said or not a number, and the id that the client gave."""
    size, sent_id = -1, None
    # Iterables of iterables, says ASGI, that may be good for one reading; Falcon will want to read them too.
    scope["headers"] = headers = [(key, value) for key, value in scope["headers"]]
    for key, value in headers:
        if key == b"content-length":
            size = int(value) if value.isdigit() else -1
        elif key == b"x-request-id":
            sent_id = value.decode("latin-1")
    return size, sent_id


async def _nothing_more() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _body(receive: Receive, size: int) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    if len(body) < size:
        raise RequestError(f"the body ended after {len(body)} of {size} bytes")
    return body
