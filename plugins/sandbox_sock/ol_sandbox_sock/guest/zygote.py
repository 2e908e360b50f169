"""The zygote: a Python that has imported what handlers want, and forks a cell for each request on its control socket.

It is never process 1 of its pid namespace, because code that notices a fork by its pid would not notice this one: two
instances once got the same name from tempfile. It imports nothing of a handler's and is told nothing of one, so a cell
that reads the whole of its memory finds no secret.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import traceback
from typing import TYPE_CHECKING

from olguest import server

from ol_sandbox_sock import linux
from ol_sandbox_sock.guest import cell, messages, packages

if TYPE_CHECKING:
    from typing import Any

CONTROL_FD = 3
PRELOADED = (
    "asyncio",
    "base64",
    "collections",
    "datetime",
    "decimal",
    "functools",
    "hashlib",
    "http.client",
    "io",
    "itertools",
    "json",
    "logging",
    "math",
    "random",
    "re",
    "ssl",
    "string",
    "struct",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "typing",
    "urllib.parse",
    "urllib.request",
    "uuid",
)
"""Modules of the standard library that most handlers import; shared by all instances, copy-on-write."""


def main() -> None:
    """Run the root zygote: started by the launcher, with the control socket as descriptor 3."""
    control = socket.socket(fileno=CONTROL_FD)
    for module in PRELOADED:
        try:
            __import__(module)
        except (
            ImportError
        ):  # a Python built without ssl, say: handlers that want it will say so themselves
            continue
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run(control)


def run(control: socket.socket) -> None:
    """Say that this zygote can be forked, then fork on request until the worker hangs up."""
    messages.send(control, {"ready": server.hello()})
    # What exists now stays shared: a collection in a child would write to every object's header.
    gc.collect()
    gc.freeze()
    _Zygote(control).run()


class _Zygote:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._children: dict[int, str] = {}
        self._child_ended, wakeup = socket.socketpair()
        self._wakeup = wakeup
        for end in (self._child_ended, wakeup):
            end.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._child_ended, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._child_ended.fileno() in ready:
                self._child_ended.recv(4096)
                self._report()
            if self._control.fileno() in ready:
                packet, fds = messages.receive(self._control)
                if packet is None:
                    return
                self._serve(packet, fds)

    def _serve(self, packet: dict[str, Any], fds: list[int]) -> None:
        name = packet["name"]
        try:
            if packet["fork"] == "cell":
                pid = self._fork_cell(packet, fds)
            else:
                pid = packages.fork(packet, fds, run)
            self._children[pid] = name
        except OSError as error:
            messages.send(self._control, {"ended": name, "error": str(error)})
        finally:
            for fd in fds:
                os.close(fd)

    def _report(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            name = self._children.pop(pid, None)
            if name is not None:
                messages.send(self._control, {"ended": name, "status": status})

    def _fork_cell(self, packet: dict[str, Any], fds: list[int]) -> int:
        # For the children; the kernel refuses a second time until setns has taken the first one back.
        linux.unshare(linux.CLONE_NEWPID)
        try:
            # os.fork(), not the raw clone system call: glibc must forget the threads that packages started, or a later
            # setuid in the child signals threads that do not exist, and never returns.
            pid = os.fork()
            if pid == 0:
                self._become_cell(packet, fds)
        finally:
            linux.setns(self._pid_namespace, linux.CLONE_NEWPID)
        return pid

    def _become_cell(self, packet: dict[str, Any], fds: list[int]) -> None:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            cell.run(packet, fds)
        except BaseException:
            # Nowhere else to say it: the descriptors may be closed, and the worker sees the exit code.
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(messages.BROKEN)
        os._exit(0)
