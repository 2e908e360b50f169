"""Attempts to take what others need: each takes all that it can get, keeps it, and says how it was stopped."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import signal
import socket
import time

from . import Event, attack
from .raw import syscall

_kept: list[object] = []
F_SETPIPE_SZ = 1031
FEW_MB = 1 << 20


@attack("EAGAIN")
def fork_without_end(event: Event) -> None:
    """The limit of processes holds; the children are let go afterwards."""
    reader, writer = os.pipe()
    try:
        for _ in range(event["max_processes"] * 2):
            if os.fork() == 0:
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
    finally:
        os.close(writer)
        os.close(reader)
        for _ in range(event["max_processes"] * 2):
            try:
                os.wait()
            except ChildProcessError:
                break


@attack("EAGAIN", "RuntimeError")
def start_threads_without_end(event: Event) -> str:
    import threading

    stop = threading.Event()
    try:
        for _ in range(event["max_processes"] * 2):
            threading.Thread(target=stop.wait, daemon=True).start()
    except RuntimeError:
        return "RuntimeError"
    finally:
        stop.set()
    return "no limit"


@attack("ENOSPC", "EDQUOT", "ENOMEM")
def fill_the_scratch_folder(event: Event) -> None:
    _fill("/host/flood", event["scratch_mb"])


@attack("ENOSPC", "EDQUOT", "ENOMEM")
def fill_tmp(event: Event) -> None:
    _fill("/tmp/flood", event["tmp_mb"])


@attack("ENOSPC", "EDQUOT", "ENOMEM")
def fill_shared_memory(event: Event) -> None:
    _fill("/dev/shm/flood", event["tmp_mb"])


@attack("ENOSPC", "EDQUOT", "ENOMEM")
def fill_the_scratch_folder_with_names(event: Event) -> None:
    """Empty files cost no blocks, but inodes of the host's memory."""
    os.mkdir("/host/names")
    until = time.monotonic() + 20
    for number in range(1 << 20):
        if time.monotonic() > until:
            return
        os.close(os.open(f"/host/names/{number}", os.O_CREAT))


@attack("ENOSPC", "EDQUOT", "EFBIG", "ENOMEM")
def flood_the_output(event: Event) -> None:
    line = b"x" * (1 << 16)
    for _ in range(event["scratch_mb"] * 32):
        os.write(1, line)


def _fill(path: str, limit_mb: int) -> None:
    """Write twice the limit, and free it again."""
    block = bytes(1 << 20)
    try:
        with open(path, "wb", 0) as file:
            for _ in range(limit_mb * 2):
                if file.write(block) < len(block):
                    raise OSError(errno.ENOSPC, path)
    finally:
        os.unlink(path)


@attack("took its share")
def take_all_pipe_memory(event: Event) -> str:
    """The kernel counts pipe pages by user; the suite looks whether its victim still gets some."""
    try:
        while len(_kept) < 400:
            ends = os.pipe()
            _kept.append(ends)
            fcntl.fcntl(ends[0], F_SETPIPE_SZ, FEW_MB)
    except OSError:
        pass  # its own budget, or its own descriptors, are used up
    return "took its share"


@attack("took its share")
def take_all_inotify_instances(event: Event) -> str:
    """The kernel counts them by user; the suite looks whether its victim still gets one."""
    libc = ctypes.CDLL(None, use_errno=True)
    while len(_kept) < 400:
        fd = libc.inotify_init()
        if fd < 0:
            break
        _kept.append(fd)
    return "took its share"


@attack("took its share")
def take_all_locked_memory(event: Event) -> str:
    """Locked memory is counted by user as well."""
    libc = ctypes.CDLL(None, use_errno=True)
    block = ctypes.create_string_buffer(FEW_MB)
    _kept.append(block)
    libc.mlock(block, len(block))
    return "took its share"


@attack("took its share")
def pass_descriptors_without_end(event: Event) -> str:
    """Descriptors in flight are counted by user; each socket pair holds some."""
    try:
        while len(_kept) < 200:
            pair = socket.socketpair()
            _kept.append(pair)
            socket.send_fds(pair[0], [b"x"], [0] * 100)
    except OSError:
        pass  # ETOOMANYREFS, or its own descriptors are used up
    return "took its share"


@attack("took its share", "died: out of memory: over its limit of 192 MiB")
def take_all_memory_of_tcp(event: Event) -> str:
    """The kernel has one bound for the whole machine, and what fills it need not count as anybody's memory."""
    before = _tcp_bytes()
    block = bytes(1 << 20)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    for _ in range(400):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        client.connect(listener.getsockname())
        _kept.append((client, listener.accept()[0]))
        client.setblocking(False)
        try:
            while True:
                client.send(block)
        except OSError:
            pass  # its buffers are full, or its share is used up
        taken = _tcp_bytes() - before
        if taken > 2 * event["memory_mb"] << 20:
            return f"took {taken >> 20} MiB"
    return "took its share"


def _tcp_bytes() -> int:
    with open("/proc/net/sockstat") as file:
        line = next(line for line in file if line.startswith("TCP:"))
    return int(line.split()[-1]) * resource.getpagesize()


@attack("ENOSYS", "EPERM")
def take_all_asynchronous_io(event: Event) -> None:
    """The kernel counts requests that may be in flight for the whole machine: fs.aio-max-nr."""
    context = ctypes.c_ulong(0)
    syscall("io_setup", 1 << 14, ctypes.byref(context))


@attack("EPERM", "EACCES", "ValueError")
def raise_its_own_limits(event: Event) -> str:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return "no limit"
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard + 1, hard + 1))
    except ValueError:
        return "ValueError"
    return "raised"


@attack("EPERM", "EACCES")
def take_precedence(event: Event) -> None:
    """A higher priority than everybody else."""
    os.setpriority(os.PRIO_PROCESS, 0, -10)


@attack("EPERM", "EINVAL")
def run_in_real_time(event: Event) -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))


@attack("EACCES", "EPERM", "EROFS")
def escape_the_out_of_memory_killer(event: Event) -> None:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")


@attack("still here")
def ignore_every_signal(event: Event) -> str:
    """The suite destroys this one afterwards, as it does with all, and finds no process left."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            continue
    return "still here"
