"""Runs one worker under gunicorn: one listening socket, one worker process, and an arbiter that restarts it.

gunicorn's own ways are changed where they do not fit a worker that owns sandboxes:

- The first ctrl-C drains as SIGTERM does, where gunicorn's cuts requests off; the second one does that.
- An idle connection that is kept alive does not hold a stop up. While a request is still in flight it may bring another,
  which is answered 503; after that it is closed.
- A worker process whose arbiter is gone learns it at once through a descriptor, and stops without draining: whoever killed
  the arbiter with SIGKILL, or starts the next worker, must not wait for it.
- There is one worker process, whatever signals say, because a worker's folder has one owner.
- Start and stop have the time they need, where gunicorn's lifespan gives 30 seconds; the heartbeat goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

from gunicorn import glogging
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.workers.gasgi import ASGIWorker

from olcore.errors import ClusterError, OlcoreError
from olcore.worker import Worker

if TYPE_CHECKING:
    from gunicorn.asgi.parser import CallbackRequest

    from olcore.config import Settings
    from olcore.http import App
    from olcore.plugins import Plugins

log = logging.getLogger(__name__)

_HEARTBEAT_S = 30
_CLOSING_S = 15
"""What a worker process has, after the last request, to destroy its sandboxes."""
_BACKLOG = 2048
_KEEPALIVE_S = 75


def run(name: str, settings: Settings, plugins: Plugins) -> NoReturn:
    """Serve until a signal says stop, then exit: 0 after an orderly stop, 3 when the worker could not start.

    Args:
        name: The worker's.
        settings: The checked configuration, resolved.
        plugins: Loaded.

    Raises:
        OlcoreError: A backend is missing or unusable, or the port is taken; nothing was started.
    """
    plugins.require_usable(settings)
    listener = _listen(settings.core.worker_host, settings.core.worker_port)
    _set_up_log(settings.core.log_level)
    _Application(listener, name, settings, plugins).run()
    sys.exit(0)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # Here and not by gunicorn, which tries five times and then exits without saying to whom the port belongs.
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ClusterError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="set worker_host and worker_port to an address of this machine that is free",
        ) from error


def _set_up_log(level: str) -> None:
    logging.basicConfig(
        level=level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )


class _Log(glogging.Logger):  # type: ignore[misc]
    """Sends gunicorn's lines where ours go."""

    def setup(self, cfg: object) -> None:
        self.cfg = cfg
        self._access_log_enabled = False
        self.error_log.propagate = True
        # Its news at level info, such as its own name and version, are of interest to who debugs only.
        debugs = logging.getLogger().isEnabledFor(logging.DEBUG)
        self.error_log.setLevel(logging.DEBUG if debugs else logging.WARNING)


class _Application(BaseApplication):  # type: ignore[misc]
    """Carries the configuration over gunicorn's fork to the worker process."""

    def __init__(
        self, listener: socket.socket, name: str, settings: Settings, plugins: Plugins
    ) -> None:
        host, port = listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self.drain_s = settings.core.drain_timeout_s
        self._listener_fd = listener.detach()
        self._name = name
        self._settings = settings
        self._plugins = plugins
        super().__init__()

    def make_worker(self) -> Worker:
        return Worker(self._name, self._settings, self._plugins, self.url)

    def load_config(self) -> None:
        for key, value in {
            "bind": f"fd://{self._listener_fd}",
            "workers": 1,
            "worker_class": _WorkerProcess,
            "worker_connections": 65536,
            "asgi_loop": "uvloop",
            "http_parser": "auto",
            "timeout": _HEARTBEAT_S,
            "graceful_timeout": int(self.drain_s) + _CLOSING_S,
            "keepalive": _KEEPALIVE_S,
            "logger_class": _Log,
            "accesslog": None,
            "control_socket_disable": True,
            "proc_name": "olcore",
        }.items():
            self.cfg.set(key, value)

    def run(self) -> None:
        _Arbiter(self).run()


class _Arbiter(Arbiter):  # type: ignore[misc]
    def handle_int(self) -> None:
        self.handle_term()

    # The terminal is gone; gunicorn would start a second worker process on the same folder.
    handle_hup = handle_int

    def _refuse(self) -> None:
        self.log.warning("ignored: a worker has one process; use more workers")

    handle_ttin = handle_ttou = handle_usr2 = _refuse


class _Connection(ASGIProtocol):  # type: ignore[misc]
    """One connection, of which the worker process can tell whether it is idle, and which answers plain calls itself.

    What begins with ``_`` is gunicorn's, and no promise of it: hence the bound on its version, and tests over real workers.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # gunicorn keeps what it learns here on the class that it is asked through, and reads it from its own.
        ASGIProtocol._check_h1c_protocol_available()  # noqa: SLF001 -- ditto
        super().connection_made(transport)
        self.worker.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.worker.connections.discard(self)
        super().connection_lost(exc)

    async def _serve_http_request(
        self, request: CallbackRequest, sockname: object, peername: object
    ) -> bool:
        """Serve one request; says whether the connection may be kept alive."""
        receiver = self._body_receiver
        direct = self.worker.direct
        name = None
        if direct is not None and receiver._complete:  # noqa: SLF001 -- see above
            name = direct.name_of(request.method, request.path, receiver.buffered)
        if name is None:
            kept: bool = await super()._serve_http_request(request, sockname, peername)
            return kept
        body = b"".join(receiver._chunks)  # noqa: SLF001 -- ditto
        answer = await direct.answer(name, body, request.headers_bytes)
        is_last: bool = self._will_close(request, False)
        self._send_response_start(answer.status, answer.headers, request, is_last)
        self._send_body(answer.body, last=True)
        if self._flow_control.write_paused:
            await self._flow_control.drain()
        return not is_last

    def is_idle(self) -> bool:
        return bool(self._awaiting_request)

    def close(self) -> None:
        self.transport.close()


class _WorkerProcess(ASGIWorker):  # type: ignore[misc]
    """The worker process: gunicorn's, with a start and a stop of our own."""

    def load_wsgi(self) -> None:
        """Do nothing: the application is there when the worker has started, on the loop."""

    def init_signals(self) -> None:
        super().init_signals()
        self.connections: set[_Connection] = set()
        self._stopping = asyncio.Event()
        self._worker = self.app.make_worker()
        self.loop.add_signal_handler(signal.SIGINT, self._interrupted)

    def _interrupted(self) -> None:
        if self.alive:
            self.handle_exit_signal()
        else:
            self.handle_quit_signal()

    def handle_exit_signal(self) -> None:
        self.alive = False
        self._worker.drain()
        self._stopping.set()

    def handle_quit_signal(self) -> None:
        self._quick_shutdown = True
        self.handle_exit_signal()

    async def _serve(self) -> None:
        if not ASGIProtocol._check_h1c_protocol_available():  # noqa: SLF001 -- gunicorn's, as in _Connection
            log.info("HTTP is parsed in Python; pip install 'olcore[fast]' for the C parser")
        beat = asyncio.create_task(self._beat())
        try:
            self._watch_arbiter()
            app = await self._start()
            self.asgi, self.direct = app.asgi, app.direct
            for listener in self.sockets:
                self.servers.append(
                    await self.loop.create_server(lambda: _Connection(self), sock=listener.sock)
                )
            await self._stopping.wait()
            await self._stop()
        finally:
            beat.cancel()

    def _watch_arbiter(self) -> None:
        try:
            # A descriptor tells at once what gunicorn asks for each second.
            arbiter = os.pidfd_open(self.ppid)
        except ProcessLookupError:
            self.handle_quit_signal()
            return

        def is_gone() -> None:
            self.loop.remove_reader(arbiter)
            os.close(arbiter)
            log.error("the arbiter is gone: stopping at once")
            self.handle_quit_signal()

        self.loop.add_reader(arbiter, is_gone)

    async def _start(self) -> App:
        try:
            app: App = await self._worker.start()
        except OlcoreError as error:
            hint = f" ({error.hint})" if error.hint else ""
            log.critical("the worker cannot start: %s%s", error.message, hint)
        except Exception:
            log.critical("the worker cannot start: a bug", exc_info=True)
        else:
            return app
        # This exit code tells the arbiter to give up; with any other it would try again for ever.
        raise SystemExit(Arbiter.WORKER_BOOT_ERROR)

    async def _beat(self) -> None:
        while True:
            self.notify()
            await asyncio.sleep(1)

    async def _stop(self) -> None:
        for server in self.servers:
            server.close()
        await self._settle(self.app.drain_s)
        await self._worker.stop()
        # What was cut off is told so, if its client reads it.
        await self._settle(1.0)

    async def _settle(self, limit_s: float) -> None:
        """Wait until no request is in flight, then close the idle connections."""
        deadline = self.loop.time() + limit_s
        while any(not each.is_idle() for each in self.connections):
            if self._quick_shutdown or self.loop.time() > deadline:
                break
            await asyncio.sleep(0.02)
        for each in list(self.connections):
            if each.is_idle():
                each.close()
