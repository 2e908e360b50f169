"""Names and times each request, so that a reply, a log line and an event can be brought together."""

from __future__ import annotations

import itertools
import re
import secrets
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import falcon.asgi

_IS_SANE = re.compile(r"[A-Za-z0-9._-]{1,128}").fullmatch


class Tracer:
    """Takes the id that the client sent when it is a sane one, else makes one.

    A random start for each worker process and a counter name a request as uniquely as a random number for each would, and
    cost a tenth of it. So make it in the worker process, not before the fork.
    """

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(5)
        self._count = itertools.count(1).__next__

    def named(self, sent: str | None) -> str:
        """Return *sent* when it can serve as an id, else a new one."""
        if sent is not None and _IS_SANE(sent):
            return sent
        return f"{self._prefix}-{self._count():x}"

    def begin(self, req: falcon.asgi.Request) -> str:
        """Name *req*, and note when it began."""
        named = self.named(req.get_header("X-Request-Id"))
        context = req.context
        context.request_id = named
        context.began = perf_counter()
        return named

    def end(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> str:
        """Set the headers of a reply that no handler gave, and say the request's id."""
        context = req.context
        if not hasattr(context, "request_id"):  # Falcon refused it before anything of ours saw it
            self.begin(req)
        named: str = context.request_id
        resp.set_header("X-Request-Id", named)
        resp.set_header("Server-Timing", f"total;dur={(perf_counter() - context.began) * 1e3:.3f}")
        return named
