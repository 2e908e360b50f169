"""The cell: a fork of a zygote that walls itself in, waits for a handler, and serves it.

A cell lives in two acts. The first, in ``prepare``, is all that needs no handler: cgroup, namespaces, /proc, /tmp,
network. A cell that has done so and waits is a *stem cell*: a cold start then pays for the second act only. The second,
in ``confine``, begins with two mounts, code and scratch, and gives everything else away, in an order that matters:

1. the mounts, while CAP_SYS_ADMIN over the mount namespace is there;
2. every descriptor but standard output and error (a child that kept the zygote's control socket once received another
   instance's code);
3. groups, then gid, then uid: one host uid that no other live instance has;
4. a user namespace of its own, in which that uid is 1000, no further namespaces may be made, and which has no power over
   the namespaces made before;
5. the bounding set, all capabilities, no-new-privileges, the seccomp filter;
6. the connection to the worker, and the handler's first line.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import sys
from typing import TYPE_CHECKING

from olguest import server

from ol_sandbox_sock import linux
from ol_sandbox_sock.guest import filters, messages

if TYPE_CHECKING:
    from typing import Any

UID = GID = 1000

_LINK_FD = 3
_TMPFS = linux.MS_NOSUID | linux.MS_NODEV
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_MOST_FILES = 4096


def run(packet: dict[str, Any], fds: list[int]) -> None:
    """Live a cell's whole life; called in the child right after the fork.

    Args:
        packet: ``uid`` to become and ``network`` (whether to have a network namespace of its own).
        fds: The link to the worker, then cgroup v1 ``tasks`` files to enter.
    """
    link = prepare(packet, fds)
    while True:
        order, fds = messages.receive(link)
        if order is None:
            return  # the worker does not want this stem cell any more
        if "address" in order:
            _set_up_network(order)
            messages.send(link, {"networked": True})
        else:
            confine(packet["uid"], order, fds)
            serve()
            return


def prepare(packet: dict[str, Any], fds: list[int]) -> socket.socket:
    """Do all that needs no handler, and tell the worker, with descriptors of this process and of its network."""
    for tasks in fds[1:]:
        os.write(
            tasks, b"0"
        )  # the caller itself; unlike cgroup.procs, this takes no lock that waits for RCU
    os.dup2(fds[0], _LINK_FD)
    linux.close_range(_LINK_FD + 1, linux.LAST_FD)
    namespaces = linux.CLONE_NEWNS | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS
    if packet["network"]:
        namespaces |= linux.CLONE_NEWNET
    linux.unshare(namespaces)
    linux.mount("proc", "/proc", "proc", _TMPFS | linux.MS_NOEXEC)
    for folder in ("/tmp", "/dev/shm"):
        linux.mount("tmpfs", folder, "tmpfs", _TMPFS, _tmpfs_options(packet["tmp_mb"]))
    linux.sethostname("sandbox")
    if packet["network"]:
        linux.interface_up("lo")
    link = socket.socket(fileno=_LINK_FD)
    # The worker needs both to act on this very process: a pid could be reused before it gets there.
    handles = [
        os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC),
        linux.pidfd_open(os.getpid()),
    ]
    messages.send(link, {"prepared": True}, handles)
    for handle in handles:
        os.close(handle)
    return link


def _tmpfs_options(size_mb: int) -> str:
    # tmpfs keeps inodes in kernel memory; without a bound of their own, empty files would be free.
    return f"mode=1777,size={size_mb}m,nr_inodes={max(size_mb * 64, 256)}"


def _set_up_network(order: dict[str, Any]) -> None:
    device = order["device"]
    linux.set_address(device, order["address"], 32)
    linux.interface_up(device)
    linux.add_default_route(order["gateway"], device)
    linux.add_neighbour(order["gateway"], order["gateway_hardware"], device)


def confine(uid: int, order: dict[str, Any], fds: list[int]) -> None:
    """Take the handler's two mounts, and give everything else away."""
    for tree, target in zip(fds, ("/handler", "/host", "/packages")):  # noqa: B905 -- Python 3.9 has no strict
        linux.move_mount(tree, "", linux.AT_FDCWD, target, linux.MOVE_MOUNT_F_EMPTY_PATH)
    if "tmp_mb" in order:
        for folder in ("/tmp", "/dev/shm"):
            linux.mount(
                None, folder, None, linux.MS_REMOUNT | _TMPFS, _tmpfs_options(order["tmp_mb"])
            )
    # Opened here and not by the worker, or /proc/self/fd would tell their paths on the host. Nobody but the worker has been
    # in the folder before, so no link can wait there.
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"/host/{name}", os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW), number)
    linux.close_range(_LINK_FD, linux.LAST_FD)
    bpf = filters.read("cell")
    _become(uid)
    _limit()
    linux.drop_all_capabilities()
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if bpf:
        linux.seccomp_load(bpf)


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # set*id made this process's files in /proc the host's root's; its own maps could then not be written.
    linux.prctl(linux.PR_SET_DUMPABLE, 1)
    linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWCGROUP)
    for name, text in (
        ("setgroups", "deny"),
        ("gid_map", f"{GID} {uid} 1"),
        ("uid_map", f"{UID} {uid} 1"),
    ):
        _write(f"/proc/self/{name}", text)


def _limit() -> None:
    # user_namespaces(7): counted for each user in each user namespace, so zero here says "none below this one".
    for name in _NAMESPACES:
        _write(f"/proc/sys/user/max_{name}_namespaces", "0")
    _write("/proc/sys/user/max_inotify_instances", "64")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = min(_MOST_FILES, hard) if hard > 0 else _MOST_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def serve() -> None:
    """Connect to the worker and serve the handler; what two forks of a zygote must not share is made anew first."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    if filters.OURS in sys.path:
        sys.path.remove(filters.OURS)
    server.main()
