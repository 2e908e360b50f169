"""A package zygote: a zygote forked from a zygote, in walls of its own, that imports what its handlers share.

Package code is a stranger's, so it gets no power over what is around it: a user namespace with a slice of the parent's
uids that no other zygote has, a network namespace with nothing in it, a cgroup with limits, and no descriptor but its
own. Three processes make it: the *keeper*, which enters the namespaces and whose end the parent reports; its child, which
is process 1 of the new pid namespace and reaps; and that one's child, the zygote. What to import comes over the new
zygote's own control socket, so that the parent, from which strangers are forked too, never has it in memory.
"""

from __future__ import annotations

import ctypes  # noqa: TID251 - for the interpreter's own API, and not for libc
import os
import random
import signal
import socket
import sys
import threading
import traceback
from typing import TYPE_CHECKING

from olguest import imports

from ol_sandbox_sock import linux
from ol_sandbox_sock.guest import filters, messages

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_CONTROL_FD = 3


def fork(packet: dict[str, Any], fds: list[int], run: Callable[[socket.socket], None]) -> int:
    """Fork the keeper of a package zygote, map its uids, and return its pid; called in the parent zygote.

    Args:
        packet: ``uids``: first uid, as the parent numbers it, and how many.
        fds: The new zygote's control socket, then cgroup v1 ``tasks`` files to enter.
        run: What the new zygote does when it has imported.
    """
    asks, asked = os.pipe()
    ready, go = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            _guarded(lambda: _keep(fds, (asked, ready), run))
        os.close(asked)
        asked = -1
        if os.read(asks, 1):  # nothing: it failed, and its end will be reported
            first, size = packet["uids"]
            for name in ("gid_map", "uid_map"):
                fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, f"0 {first} {size}".encode())
                finally:
                    os.close(fd)
            os.write(go, b"x")
    finally:
        for end in (asks, asked, ready, go):
            if end >= 0:
                os.close(end)
    return pid


def _guarded(body: Callable[[], None]) -> None:
    try:
        body()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(messages.BROKEN)
    os._exit(0)


def _keep(fds: list[int], pipes: tuple[int, int], run: Callable[[socket.socket], None]) -> None:
    asked, ready = pipes
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for tasks in fds[1:]:
        os.write(tasks, b"0")  # as in cell.py
    # All at once: the others then belong to the new user namespace.
    linux.unshare(
        linux.CLONE_NEWUSER
        | linux.CLONE_NEWNS
        | linux.CLONE_NEWPID
        | linux.CLONE_NEWIPC
        | linux.CLONE_NEWUTS
        | linux.CLONE_NEWNET
    )
    os.write(asked, b"x")
    if not os.read(ready, 1):
        raise OSError("the parent did not map the uids")
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    # What the zygote imports is a stranger's and root here: it must not write into its parents' memory, which are in
    # other pid namespaces than it or without a filter. Set*id makes them undumpable unless fs.suid_dumpable is 1.
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    os.dup2(fds[0], _CONTROL_FD)
    linux.close_range(_CONTROL_FD + 1, linux.LAST_FD)
    bpf = filters.read("zygote")
    if bpf:
        linux.seccomp_load(bpf)  # as the root of a user namespace, without no-new-privileges
    first = os.fork()
    if first == 0:
        _guarded(lambda: _be_process_one(run))
    os.close(_CONTROL_FD)
    _, status = os.waitpid(first, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _be_process_one(run: Callable[[socket.socket], None]) -> None:
    linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    for folder in ("/tmp", "/dev/shm"):
        linux.mount(
            "tmpfs",
            folder,
            "tmpfs",
            linux.MS_NOSUID | linux.MS_NODEV,
            "mode=1777,size=16m,nr_inodes=1k",
        )
    linux.interface_up("lo")
    zygote = os.fork()
    if zygote == 0:
        _guarded(lambda: _import_and_run(socket.socket(fileno=_CONTROL_FD), run))
    os.close(_CONTROL_FD)
    while True:
        pid, status = os.wait()
        if pid == zygote:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _import_and_run(control: socket.socket, run: Callable[[socket.socket], None]) -> None:
    # Unlike its parents, or /proc/<child>/uid_map would belong to the host's root, out of reach for mapping a child.
    linux.prctl(linux.PR_SET_DUMPABLE, 1)
    # The worker kills process 1, our parent, to end all; by a descriptor, since a pid could be reused.
    handles = [linux.pidfd_open(pid) for pid in (os.getppid(), os.getpid())]
    messages.send(control, {"prepared": True}, handles)
    for handle in handles:
        os.close(handle)
    order, fds = messages.receive(control)
    if order is None:
        return
    stdout, stderr, *code = fds
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for tree in code:
        linux.move_mount(tree, "", linux.AT_FDCWD, "/handler", linux.MOVE_MOUNT_F_EMPTY_PATH)
    linux.close_range(_CONTROL_FD + 1, linux.LAST_FD)
    random.seed()
    os.environ.update(order["environment"])
    sys.path[:] = [*order["sys_path"], *sys.path]
    if code:
        os.chdir("/handler")  # where the handler finds itself when it is not in a snapshot
    with imports.Recorder(memory=True) as recorder:
        for module in order["imports"]:
            __import__(module)
    sys.stdout.flush()
    sys.stderr.flush()
    _tell(control, recorder, _threads())
    run(control)


def _threads() -> str:
    """Name the threads of Python there are beside this one."""
    # Threads of C libraries come back by their own fork handlers (OpenBLAS does so); Python's do not.
    names = [
        thread.name for thread in threading.enumerate() if thread is not threading.main_thread()
    ]
    # What _thread started is not among these.
    return ", ".join(names) or ("a thread without a name" if _is_accompanied() else "")


def _is_accompanied() -> bool:
    """Whether the interpreter knows another thread than this one, which must be the oldest.

    ``_thread._count()`` knows a new thread only when it has run for the first time; but its state is put at the head of
    the interpreter's list before its start returns. The states are compared and not looked into: a thread may end
    at any time, and its state with it.
    """
    api = ctypes.pythonapi
    get, head, own = (
        api.PyInterpreterState_Get,
        api.PyInterpreterState_ThreadHead,
        api.PyThreadState_Get,
    )
    get.restype = head.restype = own.restype = ctypes.c_void_p
    newest, this = head(ctypes.c_void_p(get())), own()
    return bool(newest != this)


def _tell(control: socket.socket, recorder: imports.Recorder, threads: str) -> None:
    """Report the imports in packets that fit; the last says that it is."""
    size = 200
    records = recorder.records
    for start in range(0, len(records), size):
        messages.send(control, {"imported": records[start : start + size]})
    missed = sorted(recorder.missed)
    for start in range(0, len(missed), size):
        messages.send(control, {"missed": missed[start : start + size]})
    messages.send(control, {"done": True, "threads": threads, "private_kb": _private_kb()})


def _private_kb() -> int:
    total = 0
    with open("/proc/self/smaps_rollup") as file:
        for line in file:
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total += int(line.split()[1])
    return total
