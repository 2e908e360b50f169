"""Assembles what serves one worker's requests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import falcon.asgi

from olcore.http.direct import Direct
from olcore.http.errors import ErrorHandlers
from olcore.http.registry import RegistryAccess, RegistryHandler, RegistryList
from olcore.http.run import PATHS, Run
from olcore.http.status import Instances, Status
from olcore.http.trace import Tracer

if TYPE_CHECKING:
    from olcore.handlers.manager import Manager
    from olcore.http.gate import Gate
    from olcore.interfaces import WorkerInfo


@dataclass(frozen=True, slots=True)
class App:
    """What a server serves."""

    asgi: falcon.asgi.App[falcon.asgi.Request, falcon.asgi.Response]
    """Every request."""
    direct: Direct | None
    """Plain calls, for a server that can do without ASGI for them."""


CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, PUT, POST, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": (
        "Content-Type, Content-Range, Content-Disposition, Content-Description, X-Requested-With"
    ),
}
"""What OpenLambda sends, to the letter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """What of the configuration concerns HTTP."""

    max_body_mb: float
    """No body may be larger; a handler's own limit may be lower, and is the manager's affair."""
    cors: bool = False
    """Whether to answer OPTIONS and to allow every origin."""


def make_app(
    manager: Manager,
    info: WorkerInfo,
    gate: Gate,
    options: HttpOptions,
    access: RegistryAccess | None = None,
) -> App:
    """Make the application that serves *manager*'s handlers.

    Args:
        manager: Started before the first request.
        info: Who the worker is.
        gate: Closed by whoever stops the worker.
        options: Of the configuration.
        access: The registry, when it can be changed through this worker.
    """
    # Middleware costs every request, so there is some only where it is asked for.
    app = falcon.asgi.App(middleware=[_Cors()] if options.cors else [])
    tracer = Tracer()
    ErrorHandlers(tracer).add_to(app)
    app.add_route("/status", Status(gate, tracer))
    app.add_route("/instances", Instances(manager, info, tracer))
    if access is not None:
        app.add_route("/registry", RegistryList(access, gate, tracer))
        app.add_route("/registry/", RegistryList(access, gate, tracer))
        app.add_route("/registry/{name}", RegistryHandler(access, gate, tracer))
    max_body_bytes = int(options.max_body_mb * (1 << 20))
    run = Run(manager, gate, tracer, max_body_bytes, options.cors)
    app.add_sink(run.answer, re.compile(PATHS))
    # CORS is middleware of Falcon's, so that with it every request goes there.
    direct = None if options.cors else Direct(manager, gate, tracer, max_body_bytes)
    return App(app, direct)


class _Cors:
    async def process_response(
        self,
        _req: falcon.asgi.Request,
        resp: falcon.asgi.Response,
        _resource: object,
        _req_succeeded: bool,
    ) -> None:
        resp.set_headers(CORS_HEADERS)
