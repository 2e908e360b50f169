"""Answers what is asked about the worker itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import falcon
import falcon.asgi
import msgspec

if TYPE_CHECKING:
    from olcore.handlers.manager import Manager
    from olcore.http.gate import Gate
    from olcore.http.trace import Tracer
    from olcore.interfaces import WorkerInfo

_encode = msgspec.json.Encoder(enc_hook=str).encode


class Status:
    """``GET /status``: whether requests are welcome."""

    def __init__(self, gate: Gate, tracer: Tracer) -> None:
        self._gate = gate
        self._tracer = tracer

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Say ``ready``."""
        self._tracer.begin(req)
        if not self._gate.is_open:
            raise self._gate.draining()
        self._tracer.end(req, resp)
        resp.content_type = falcon.MEDIA_TEXT
        resp.data = b"ready\n"

    # OpenLambda takes any method here; these are the ones that health checks use.
    on_head = on_get
    on_post = on_get


class Instances:
    """``GET /instances``: what lives, what it can be forked from, and how the last ones died."""

    def __init__(self, manager: Manager, info: WorkerInfo, tracer: Tracer) -> None:
        self._manager = manager
        self._info = info
        self._tracer = tracer

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Describe them."""
        self._tracer.begin(req)
        resp.content_type = falcon.MEDIA_JSON
        resp.data = _encode(
            {
                "worker": self._info.worker_name,
                "instances": self._manager.describe(),
                "deaths": self._manager.deaths(),
                "zygotes": self._manager.zygotes(),
                "stale_served": self._manager.stale_served,
            }
        )
        self._tracer.end(req, resp)
