"""Answers plain calls of handlers for a server that has the whole request at hand, ahead of ASGI and Falcon.

An ASGI server's task, scope and messages for a request, and Falcon's objects for it, cost a plain call about as much as
all the rest of its way. So a server that knows of this module (server.py) asks ``name_of`` first; where that names a
handler, ``answer`` makes the whole reply. All else is Falcon's: other methods, a body that is still on its way, CORS.
"""

from __future__ import annotations

import re
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from olcore.http import errors
from olcore.http.run import PATHS, timing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from olcore.handlers.manager import Manager
    from olcore.http.gate import Gate
    from olcore.http.trace import Tracer

_match = re.compile(PATHS).match
_JSON = (b"content-type", b"application/json")

Header = tuple[bytes, bytes]


class Answer(NamedTuple):
    """A whole reply; ``content-length`` is among the headers."""

    status: int
    headers: Sequence[Header]
    body: bytes


class Direct:
    """The plain calls of one worker.

    Args:
        manager: Started before the first call.
        gate: Closed by whoever stops the worker.
        tracer: Names requests.
        max_body_bytes: A larger body is Falcon's to refuse.
    """

    def __init__(self, manager: Manager, gate: Gate, tracer: Tracer, max_body_bytes: int) -> None:
        self._invoke = manager.invoke
        self._gate = gate
        self._named = tracer.named
        self._max_body_bytes = max_body_bytes

    def name_of(self, method: str, path: str, size: int) -> str | None:
        """Say which handler a request with a body of *size* bytes calls; ``None`` when it is no plain call."""
        if method != "POST" or size > self._max_body_bytes or not self._gate.is_open:
            return None
        path_match = _match(path)
        return path_match["name"] if path_match is not None else None

    async def answer(self, name: str, body: bytes, headers: Sequence[Header]) -> Answer:
        """Call the handler *name*; an error is an answer too, in the shape that Falcon gives it.

        Args:
            name: From ``name_of``, unchecked.
            body: The event.
            headers: The request's, their names in lower case.
        """
        request_id = self._named(_sent_id(headers))
        began = perf_counter()
        try:
            reply = await self._invoke(name, body, request_id)
        except Exception as error:  # noqa: BLE001 -- whatever it is, errors.py tells it
            told = errors.told(error)
            errors.log_bug(error, request_id, name)
            took = f"total;dur={(perf_counter() - began) * 1e3:.3f}"
            answer = errors.encoded(told, name, request_id)
            more = [(b"retry-after", told.retry_after.encode())] if told.retry_after else []
            return Answer(told.status, _headers(answer, request_id, took, more), answer)
        return Answer(200, _headers(reply.result, request_id, timing(reply)), reply.result)


def _headers(
    body: bytes, request_id: str, took: str, more: Sequence[Header] = ()
) -> Sequence[Header]:
    return [
        _JSON,
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
        (b"server-timing", took.encode()),
        *more,
    ]


def _sent_id(headers: Sequence[Header]) -> str | None:
    for name, value in headers:
        if name == b"x-request-id":
            return value.decode("latin-1")
    return None
