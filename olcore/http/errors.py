"""Turns every error into the one shape that replies have."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
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
class Told:
    """What is told of an error, whoever writes it into a reply."""

    status: int
    code: str
    message: str
    hint: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)
    retry_after: str = ""
    """The header's value, if there is to be one."""


def told(error: Exception) -> Told:
    """Say what is told of *error*; nothing of what is in it when it is a bug."""
    if not isinstance(error, OlcoreError):
        hint = "its log has the traceback, under this request_id"
        return Told(OlcoreError.status, OlcoreError.code, "the worker met a bug", hint)
    retry_after = ""
    if error.retry_after_s is not None:
        # The header counts whole seconds; rounded up, because a retry that comes too early is turned away again.
        retry_after = str(max(1, math.ceil(error.retry_after_s)))
    return Told(error.status, error.code, error.message, error.hint, error.details, retry_after)


def encoded(told: Told, handler: str, request_id: str) -> bytes:
    """Write the body of a reply, in the one shape."""
    whole: dict[str, object] = {
        "code": told.code,
        "message": told.message,
        "handler": handler,
        "request_id": request_id,
    }
    if told.hint is not None:
        whole["hint"] = told.hint
    for key, value in told.details.items():
        # A detail never takes the place of what every error has.
        whole.setdefault(key, value)
    return _encode({"error": whole})


def log_bug(error: Exception, request_id: str, what: str) -> None:
    """Keep a bug's traceback, which no reply has; nothing to do for an error on purpose."""
    if not isinstance(error, OlcoreError):
        log.error("request %s %s met a bug", request_id, what, exc_info=error)


class ErrorHandlers:
    """Falcon calls them with whatever was raised."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def add_to(self, app: falcon.asgi.App[falcon.asgi.Request, falcon.asgi.Response]) -> None:
        """Have *app* call them."""
        app.add_error_handler(Exception, self._of_ours)
        app.add_error_handler(falcon.HTTPError, self._of_falcon)

    async def _of_ours(
        self,
        req: falcon.asgi.Request,
        resp: falcon.asgi.Response,
        error: Exception,
        params: Params,
    ) -> None:
        log_bug(error, self._answer(req, resp, params, told(error)), req.path)

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
        self._answer(req, resp, params, Told(status, code, _say(req, error), hint))

    def _answer(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, params: Params, told: Told
    ) -> str:
        named = self._tracer.end(req, resp)
        if told.retry_after:
            resp.set_header("Retry-After", told.retry_after)
        resp.status = told.status
        resp.content_type = falcon.MEDIA_JSON
        resp.data = encoded(told, str(params.get("name", "")), named)
        return named


def _say(req: falcon.asgi.Request, error: falcon.HTTPError) -> str:
    if isinstance(error, falcon.HTTPNotFound):
        return f"nothing is served at {req.path!r}"
    if isinstance(error, falcon.HTTPMethodNotAllowed):
        return f"{req.path!r} does not take {req.method!r}"
    said = error.description or error.title
    return said.rstrip(".")
