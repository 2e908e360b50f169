"""The launcher: makes the outer walls around a root zygote, and is process 1 inside them.

The worker starts it as a program of its own (``python -I -S``, so nothing of the worker is in its memory). First it is
the host's root and builds the root file system; then it moves into new user, mount, pid, ipc, uts and network namespaces
whose ids the worker maps, and forks. The child is process 1 of the pid namespace: it takes the root, starts the zygote by
exec and reaps. When the worker dies, however it dies, the kernel kills the launcher (PR_SET_PDEATHSIG), then process 1,
then everything in its pid namespace and below: no process, and so no mount or network of an instance, is left.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from typing import Any

from ol_sandbox_sock import linux, root
from ol_sandbox_sock.guest import messages

CONTROL_FD = 3
_STEPPING_STONE = "/tmp"
BOOT = (
    f"import sys; sys.path.append({root.OURS!r}); "
    "from ol_sandbox_sock.guest.zygote import main; main()"
)
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/tmp"}


def main() -> None:
    """Run the launcher: ``launcher FD PARENT``, the control socket's descriptor and the worker's pid."""
    control = socket.socket(fileno=int(sys.argv[1]))
    _die_with_parent()
    if os.getppid() != int(sys.argv[2]):
        sys.exit("the worker died before its launcher was ready")
    order, fds = messages.receive(control)
    if order is None:
        return
    folder = order["folder"]
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    for fd in fds:
        os.close(fd)
    tree = root.build(_steps(order["steps"]), folder)
    _enter_namespaces(control, network=order["network"])
    alive, alive_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(alive_end)
        _be_process_one(control, alive, tree, order)
    control.close()
    os.close(alive)
    os.close(tree)
    _, status = os.waitpid(pid, 0)
    sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _die_with_parent() -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)


def _steps(packed: list[list[Any]]) -> list[root.Step]:
    return [getattr(root, kind)(*values) for kind, *values in packed]


def _enter_namespaces(control: socket.socket, *, network: bool) -> None:
    flags = (
        linux.CLONE_NEWUSER
        | linux.CLONE_NEWNS
        | linux.CLONE_NEWPID
        | linux.CLONE_NEWIPC
        | linux.CLONE_NEWUTS
    )
    if network:
        flags |= linux.CLONE_NEWNET
    linux.unshare(flags)  # all at once: the others then belong to the new user namespace
    messages.send(control, {"map": os.getpid()})
    messages.receive(control)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    _die_with_parent()  # every set*id call clears it


def _be_process_one(control: socket.socket, alive: int, tree: int, order: dict[str, Any]) -> None:
    executable, network = order["executable"], order["network"]
    _die_with_parent()
    # getppid() says 0 for a parent outside the pid namespace, so a pipe tells whether it died before the line above.
    if select.select([alive], [], [], 0)[0]:
        os._exit(1)
    # On /tmp, which any uid can reach in every system: the cluster's folder may be closed to the uid that we are outside.
    linux.move_mount(tree, "", linux.AT_FDCWD, _STEPPING_STONE, linux.MOVE_MOUNT_F_EMPTY_PATH)
    os.chdir(_STEPPING_STONE)
    # Before the old root goes: the kernel lets a user namespace mount proc only where one is fully visible already.
    # hidepid, because a package zygote's own proc lies on this one, and the root of its user namespace can move that away.
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("proc", "proc", "proc", flags, "hidepid=2")
    linux.pivot_root(".", ".")
    linux.umount2(".", linux.MNT_DETACH)
    os.chdir("/")
    linux.sethostname("zygote")
    if network:
        linux.interface_up("lo")
    zygote = os.fork()
    if zygote == 0:
        os.dup2(control.fileno(), CONTROL_FD, inheritable=True)
        linux.close_range(CONTROL_FD + 1, linux.LAST_FD)
        os.execve(  # noqa: S606 -- no shell wanted
            executable, [executable, "-I", "-S", "-c", BOOT], ENVIRONMENT
        )
    control.close()
    while True:
        pid, status = os.wait()
        if pid == zygote:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def pack(steps: list[root.Step]) -> list[list[Any]]:
    """Write *steps* as JSON values that the launcher reads back."""
    return [[type(step).__name__, *vars(step).values()] for step in steps]
