"""Attempts to gain a user, a capability or a namespace."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys

from . import Event, attack
from .raw import syscall

CLONE_NEWTIME = 0x80
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
SIGCHLD = 17
CAPABILITY_VERSION_3 = 0x20080522


@attack("EPERM", "EINVAL")
def become_root(event: Event) -> None:
    os.setuid(0)


@attack("EPERM", "EINVAL")
def become_root_group(event: Event) -> None:
    os.setgid(0)


@attack("EPERM")
def join_groups(event: Event) -> None:
    os.setgroups([0])


@attack("EPERM", "EINVAL")
def become_another_instance(event: Event) -> None:
    """Its neighbour's user, when they differ; any other user otherwise."""
    other = os.getuid() + 1
    syscall("setresuid", other, other, other)


@attack("EPERM")
def take_all_capabilities(event: Event) -> None:
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    syscall("capset", header, struct.pack("=6I", *[0xFFFFFFFF] * 6))


@attack("none")
def have_a_capability(event: Event) -> str:
    """Effective, permitted, inheritable and ambient; the bounding set too, which an exec would draw from."""
    status = open("/proc/self/status").read()
    held = [
        line for line in status.splitlines() if line.startswith("Cap") and int(line.split()[1], 16)
    ]
    return f"holds {held}" if held else "none"


@attack("set")
def run_without_no_new_privileges(event: Event) -> str:
    status = open("/proc/self/status").read()
    return "set" if "NoNewPrivs:\t1" in status else "not set"


@attack("filtered")
def run_without_seccomp(event: Event) -> str:
    status = open("/proc/self/status").read()
    return "filtered" if "Seccomp:\t2" in status else "not filtered"


@attack("none")
def regain_capabilities_by_exec(event: Event) -> str:
    """A set-uid program must run as who calls it."""
    code = "print(open('/proc/self/status').read())"
    said = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    ).stdout
    held = [
        line for line in said.splitlines() if line.startswith("Cap") and int(line.split()[1], 16)
    ]
    return f"holds {held}" if held else "none"


@attack("refused")
def use_a_setuid_program(event: Event) -> str:
    """Su needs no password from root, and mount no right."""
    for program, arguments in (
        ("/usr/bin/su", ["-c", "id -u"]),
        ("/usr/bin/mount", ["-t", "tmpfs", "none", "/tmp"]),
    ):
        if os.path.exists(program):
            done = subprocess.run(
                [program, *arguments], capture_output=True, stdin=subprocess.DEVNULL, check=False
            )
            if done.returncode == 0:
                return f"{program} worked: {done.stdout!r}"
    return "refused"


@attack("EPERM", "ENOSPC", "EINVAL")
def unshare_user(event: Event) -> None:
    syscall("unshare", CLONE_NEWUSER)


@attack("EPERM", "ENOSPC")
def unshare_mounts(event: Event) -> None:
    syscall("unshare", CLONE_NEWNS)


@attack("EPERM", "ENOSPC")
def unshare_processes(event: Event) -> None:
    syscall("unshare", CLONE_NEWPID)


@attack("EPERM", "ENOSPC")
def unshare_network(event: Event) -> None:
    syscall("unshare", CLONE_NEWNET)


@attack("EPERM", "ENOSPC", "EINVAL")
def unshare_everything_with_a_user(event: Event) -> None:
    """A user namespace made in the same call would own the others."""
    kinds = (
        CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    )
    syscall("unshare", CLONE_NEWUSER | kinds)


@attack("EPERM", "ENOSPC", "EINVAL")
def unshare_time(event: Event) -> None:
    syscall("unshare", CLONE_NEWTIME)


@attack("EPERM", "ENOSPC", "EINVAL", "ENOSYS")
def clone_with_a_user_namespace(event: Event) -> None:
    if syscall("clone", CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0) == 0:
        os._exit(0)


@attack("EPERM", "ENOSPC", "EINVAL", "ENOSYS")
def clone3_with_a_user_namespace(event: Event) -> None:
    """clone3 takes its flags in memory, where a filter cannot read them."""
    arguments = struct.pack("=8Q", CLONE_NEWUSER, 0, 0, 0, SIGCHLD, 0, 0, 0)
    if syscall("clone3", arguments, len(arguments)) == 0:
        os._exit(0)


@attack("EPERM", "EINVAL", "EACCES", "ENOENT")
def enter_namespaces_of_process_1(event: Event) -> None:
    for kind in ("user", "mnt", "pid", "net", "uts", "ipc"):
        fd = os.open(f"/proc/1/ns/{kind}", os.O_RDONLY)
        try:
            syscall("setns", fd, 0)
        finally:
            os.close(fd)


@attack("EPERM", "EACCES", "EINVAL", "EROFS")
def widen_the_user_map(event: Event) -> None:
    with open("/proc/self/uid_map", "w") as file:
        file.write("0 0 4294967295")


@attack("EPERM", "ENOSYS", "EACCES")
def load_a_bpf_program(event: Event) -> None:
    """BPF_PROG_LOAD of a socket filter that returns 0."""
    code = struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    text, name = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack("=IIQQIIQII", 1, 2, ctypes.addressof(text), ctypes.addressof(name),
                             0, 0, 0, 0, 0)  # fmt: skip
    syscall("bpf", 5, attributes, len(attributes))


@attack("EPERM", "ENOSYS", "EACCES")
def make_a_bpf_map(event: Event) -> None:
    attributes = struct.pack("=5I", 2, 4, 4, 1, 0)
    syscall("bpf", 0, attributes, len(attributes))


@attack("EPERM", "ENOSYS")
def add_a_key(event: Event) -> None:
    syscall("add_key", b"user", b"ol-attack", b"x", 1, -4)


@attack("EPERM", "ENOSYS")
def request_a_key(event: Event) -> None:
    syscall("request_key", b"user", b"ol-attack", None, -4)


@attack("EPERM", "ENOSYS")
def open_a_keyring(event: Event) -> None:
    syscall("keyctl", 0, -4, 1)
