"""Turns every error into the one shape that replies have."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import falcon
import falcon.asgi
import msgspec

from olcore.errors import OlcoreError

if TYPE_CHECKING:
    from olcore.http.trace import Tracer

log = logging.getLogger(__name__)

Params = dict[str, object]

_CODES = {404: "no_such_path", 405: "method_not_allowed"}
_encode = msgspec.json.Encoder(enc_hook=str).encode


@dataclass(frozen=True, slots=True)
class _Told:
    status: int
    code: str
    message: str
    hint: str | None = None
    details: dict[str, object] = field(default_factory=dict)


class ErrorHandlers:
    """Falcon calls them with whatever was raised."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def add_to(self, app: falcon.asgi.App[falcon.asgi.Request, falcon.asgi.Response]) -> None:
        """Have *app* call them."""
        app.add_error_handler(Exception, self._of_a_bug)
        app.add_error_handler(falcon.HTTPError, self._of_falcon)
        app.add_error_handler(OlcoreError, self._on_purpose)

    async def _on_purpose(
        self,
        req: falcon.asgi.Request,
        resp: falcon.asgi.Response,
        error: OlcoreError,
        params: Params,
    ) -> None:
        if error.retry_after_s is not None:
            # The header counts whole seconds; rounded up, because a retry that comes too early is turned away again.
            resp.set_header("Retry-After", str(max(1, math.ceil(error.retry_after_s))))
        told = _Told(error.status, error.code, error.message, error.hint, error.details)
        self._answer(req, resp, params, told)

    async def _of_falcon(
        self,
        req: falcon.asgi.Request,
        resp: falcon.asgi.Response,
        error: falcon.HTTPError,
        params: Params,
    ) -> None:
        if error.headers:
            resp.set_headers(error.headers)
        status = error.status_code
        code = _CODES.get(status, "bad_request")
        hint = "handlers are called at /run/<name>" if status in _CODES else None
        self._answer(req, resp, params, _Told(status, code, _say(req, error), hint))

    async def _of_a_bug(
        self,
        req: falcon.asgi.Request,
        resp: falcon.asgi.Response,
        error: Exception,
        params: Params,
    ) -> None:
        hint = "its log has the traceback, under this request_id"
        told = _Told(OlcoreError.status, OlcoreError.code, "the worker met a bug", hint)
        named = self._answer(req, resp, params, told)
        log.error("request %s %s met a bug", named, req.path, exc_info=error)

    def _answer(
        self,
        req: falcon.asgi.Request,
        resp: falcon.asgi.Response,
        params: Params,
        told: _Told,
    ) -> str:
        named = self._tracer.end(req, resp)
        whole = {
            "code": told.code,
            "message": told.message,
            "handler": params.get("name", ""),
            "request_id": named,
        }
        if told.hint is not None:
            whole["hint"] = told.hint
        for key, value in told.details.items():
            # A detail never takes the place of what every error has.
            whole.setdefault(key, value)
        resp.status = told.status
        resp.content_type = falcon.MEDIA_JSON
        resp.data = _encode({"error": whole})
        return named


def _say(req: falcon.asgi.Request, error: falcon.HTTPError) -> str:
    if isinstance(error, falcon.HTTPNotFound):
        return f"nothing is served at {req.path!r}"
    if isinstance(error, falcon.HTTPMethodNotAllowed):
        return f"{req.path!r} does not take {req.method!r}"
    said = error.description or error.title
    return said.rstrip(".")
