"""Answers ``/run/<name>``, but for the plain calls that direct.py has taken before Falcon saw them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import falcon
import falcon.asgi

from olcore.http import body

if TYPE_CHECKING:
    from olcore.handlers.manager import Manager, Reply
    from olcore.http.gate import Gate
    from olcore.http.trace import Tracer

PATHS = r"/run(?:Lambda)?/(?P<name>[^/]*)"
"""OpenLambda's spelling too, and whatever follows the name, which OpenLambda accepts and no handler is told."""


def timing(reply: Reply) -> str:
    """Write the header ``Server-Timing`` of a handler's reply, in milliseconds."""
    outcome = reply.outcome
    cold = ", cold" if reply.invocation.cold else ""
    return f"queue;dur={outcome.waited_s * 1e3:.3f}, run;dur={outcome.ran_s * 1e3:.3f}{cold}"


class Run:
    """Invokes handlers.

    A sink, not a resource: a resource would need one responder for each of the thirty methods that there are, and again
    for the paths with something after the name.
    """

    def __init__(
        self, manager: Manager, gate: Gate, tracer: Tracer, max_body_bytes: int, cors: bool
    ) -> None:
        self._invoke = manager.invoke
        self._gate = gate
        self._tracer = tracer
        self._max_body_bytes = max_body_bytes
        self._cors = cors

    async def answer(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response | None, **params: str
    ) -> None:
        """Invoke the handler ``params["name"]`` with the request's body."""
        assert resp is not None  # noqa: S101 - Falcon has none for a WebSocket only, and checks that before
        request_id = self._tracer.begin(req)
        if req.method == "OPTIONS":
            self._answer_options(req, resp)
            return
        if not self._gate.is_open:
            raise self._gate.draining()
        event = await body.read(req, self._max_body_bytes)
        reply = await self._invoke(params["name"], event, request_id)
        resp.data = reply.result
        resp.set_header("X-Request-Id", request_id)
        resp.set_header("Server-Timing", timing(reply))

    def _answer_options(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        # Never an invocation: a browser sends it by itself, before the request that somebody meant.
        if not self._cors:
            raise falcon.HTTPMethodNotAllowed(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"])
        self._tracer.end(req, resp)
        resp.content_type = falcon.MEDIA_TEXT
        resp.data = b""
