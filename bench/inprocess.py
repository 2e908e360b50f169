"""The baseline of ``warm``: the same function called in-process, in the same Falcon under the same gunicorn."""

from __future__ import annotations

import json
import runpy
import sys
from typing import Any

import falcon.asgi
from gunicorn.app.base import BaseApplication

from bench.cluster import EXAMPLES


class _Run:
    def __init__(self) -> None:
        self._handler = runpy.run_path(str(EXAMPLES / "hello" / "lambda_func.py"))["handler"]

    async def on_post(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, name: str
    ) -> None:
        """Do what a guest does, without a guest."""
        event = json.loads(await req.stream.read())
        resp.data = json.dumps(self._handler(event)).encode()
        resp.content_type = "application/json"


class _Application(BaseApplication):  # type: ignore[misc]
    def load_config(self) -> None:
        for key, value in {
            "bind": f"127.0.0.1:{sys.argv[1]}",
            "workers": 1,
            "worker_class": "asgi",
            "asgi_loop": "uvloop",
            "http_parser": "fast",
            "accesslog": None,
            "loglevel": "error",
            "control_socket_disable": True,
        }.items():
            self.cfg.set(key, value)

    def load(self) -> Any:
        app = falcon.asgi.App()
        app.add_route("/runLambda/{name}", _Run())
        return app


if __name__ == "__main__":
    _Application().run()
