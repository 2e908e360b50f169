"""Serves one handler over one connection: the guest's side of protocol.py.

It runs in the handler's own process, so nothing here is a defence against the handler; what a handler can do is bounded
by the sandbox around both. It is careful for the handler's sake: exceptions become error frames, a handler that forks
and returns twice is answered for once, and what it printed is flushed before its reply goes out.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import socket
import sys
import time
import traceback
from typing import TYPE_CHECKING

from . import imports, loader, protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_CHUNK = 1 << 16
_HERE = os.path.dirname(os.path.abspath(__file__))


def main(host: str = "/host", handler: str = "/handler") -> None:
    """Connect to the worker and serve until it hangs up.

    Args:
        host: The instance's scratch folder, with ``server_pipe`` in it.
        handler: The handler's code.
    """
    serve(connect(host), handler)
    sys.stdout.flush()
    os._exit(0)


def connect(host: str = "/host") -> socket.socket:
    """Connect to the worker's socket in *host*, through a descriptor because a socket's path has at most 108 bytes."""
    folder = os.open(host, os.O_PATH | os.O_DIRECTORY)
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(f"/proc/self/fd/{folder}/server_pipe")
    finally:
        os.close(folder)
    return connection


def serve(connection: socket.socket, handler: str = "/handler") -> None:
    """Say hello, load the handler as INIT says, and answer events until the connection ends."""
    me = os.getpid()
    connection.sendall(protocol.frame(protocol.HELLO, _json(hello())))
    frames = Frames(connection)
    begun = frames.receive()
    if begun is None:
        return
    settings = json.loads(begun[1])
    called = _load(connection, handler, settings)
    if called is None:
        return
    limit = settings.get("max_result_bytes", 0xFFFFFFFF)
    while True:
        received = frames.receive()
        if received is None:
            return
        kind, payload, stream = received
        if kind != protocol.EVENT:
            return  # of a later protocol: hang up, as the protocol says
        kind, answer = _answer(called, payload, limit)
        if os.getpid() != me:
            # The handler forked and its child came back too; the reply is the parent's to send.
            os._exit(0)
        _flush()
        connection.sendall(protocol.frame(kind, answer, stream))
        if me == 1:
            reap()


def hello() -> dict[str, object]:
    """Say which protocol and which Python this is."""
    libc = " ".join(platform.libc_ver()).strip() or "musl"
    return {
        "protocol": protocol.VERSION,
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "machine": os.uname().machine,
        "libc": libc,
    }


class Frames:
    """Reads frames from a connection; nearly always one call of the kernel's for each."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = b""

    def receive(self) -> tuple[int, bytes, int] | None:
        """Read one frame: ``(kind, payload, stream)``, or ``None`` when the worker hung up."""
        data = self._rest or self._connection.recv(_CHUNK)
        while len(data) < protocol.HEADER.size:
            more = self._connection.recv(_CHUNK)
            if not more:
                return None
            data += more
        size, kind, _flags, stream = protocol.HEADER.unpack_from(data)
        end = protocol.HEADER.size + size
        if len(data) < end:
            data = self._fill(data, end)
            if not data:
                return None
        self._rest = data[end:]
        return kind, data[protocol.HEADER.size : end], stream

    def _fill(self, begun: bytes, size: int) -> bytes:
        """Read on to *size* bytes or more; nothing when the worker hung up before."""
        whole = bytearray(begun)
        while len(whole) < size:
            data = self._connection.recv(min(size - len(whole), 1 << 20))
            if not data:
                return b""
            whole += data
        return bytes(whole)


def _load(
    connection: socket.socket, handler: str, settings: dict[str, Any]
) -> Callable[[Any], Any] | None:
    began = time.perf_counter()
    os.environ.clear()
    os.environ.update(settings.get("environment", {}))
    if "TZ" in os.environ:
        time.tzset()
    wanted = settings.get("sys_path", ())
    sys.path[:] = [*wanted, *(path for path in sys.path if path not in wanted)]
    os.chdir(handler)
    recorder = imports.Recorder(memory=False)
    try:
        with recorder if settings.get("measure_imports") else contextlib.nullcontext():
            _read_pth_files(settings.get("site_dirs", ()))
            called = loader.load(handler, settings.get("entry"))
    except loader.NoEntryError as error:
        said: dict[str, object] = {"code": "handler_invalid", "message": str(error)}
    except BaseException as error:  # SystemExit too: the author wants to read why
        said = dict(_told(error), code="load_failed")
    else:
        ready = {"load_ms": (time.perf_counter() - began) * 1e3, "imported": recorder.records}
        _flush()
        connection.sendall(protocol.frame(protocol.READY, _json(ready)))
        return called
    _flush()
    connection.sendall(protocol.frame(protocol.ERROR, _json(said)))
    return None


def _read_pth_files(folders: list[str]) -> None:
    if folders:
        # Only here: few wheels have such files, and the module costs a millisecond.
        import site

        for folder in folders:
            site.addsitedir(folder)


def _answer(called: Callable[[Any], Any], payload: bytes, limit: int) -> tuple[int, bytes]:
    try:
        event = json.loads(payload) if payload else {}
    except (ValueError, RecursionError) as error:
        return _bad_event(error)
    try:
        result = called(event)
    except BaseException as error:  # SystemExit too: the instance goes on, and the caller is told
        return protocol.ERROR, _json(dict(_told(error), code="handler_raised"))
    try:
        answer = json.dumps(result, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return _error("bad_result", f"the result cannot be written as JSON: {error}")
    if len(answer) > limit:
        return _error(
            "bad_result", f"the result has {len(answer)} bytes, over the limit of {limit}"
        )
    return protocol.REPLY, answer


def _bad_event(error: Exception) -> tuple[int, bytes]:
    if isinstance(error, json.JSONDecodeError):
        said = f"the body is not JSON: {error.msg} at position {error.pos}"
        return _error("bad_event", said, position=error.pos)
    if isinstance(error, UnicodeDecodeError):
        return _error(
            "bad_event", f"the body is not UTF-8 at byte {error.start}", position=error.start
        )
    return _error("bad_event", f"the body cannot be read as JSON: {error}")


def _error(code: str, message: str, **more: object) -> tuple[int, bytes]:
    return protocol.ERROR, _json(dict(more, code=code, message=message))


def _told(error: BaseException) -> dict[str, object]:
    try:
        message = str(error)
    except Exception:  # a __str__ of the handler's own that raises
        message = "<exception whose str() failed>"
    frames = error.__traceback__
    while frames is not None and _is_ours(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    lines = traceback.format_exception(type(error), error, frames)
    return {
        "type": type(error).__name__,
        "message": message[:4096],
        "traceback": "".join(lines)[-32768:],
    }


def _is_ours(filename: str) -> bool:
    return filename.startswith((_HERE, "<frozen importlib"))


def _json(value: object) -> bytes:
    return json.dumps(value, default=str).encode()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # It may be closed or replaced by the handler, or the folder may be full: the handler's own affair.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()


def reap() -> None:
    """Collect the orphans that came to us as process 1, but no child that the handler itself still waits for."""
    while True:
        try:
            dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if dead is None or _is_awaited(dead.si_pid):
            return
        os.waitpid(dead.si_pid, 0)


def _is_awaited(pid: int) -> bool:
    # Reached only when there is a zombie. A process object whose code has not been fetched yet must still find its child,
    # or subprocess would report code 0 for it.
    subprocess = sys.modules.get("subprocess")
    popen = sys.modules.get("multiprocessing.popen_fork")
    kinds = tuple(kind.Popen for kind in (subprocess, popen) if kind is not None)
    return bool(kinds) and any(
        isinstance(thing, kinds) and thing.pid == pid and thing.returncode is None
        for thing in gc.get_objects()
    )
