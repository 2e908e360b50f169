"""Attempts on the file system: to change what is read-only, to see what is the host's, to leave the root."""

from __future__ import annotations

import os
import stat

from . import Event, attack
from .raw import syscall

MS_RDONLY = 1
MS_REMOUNT = 32
MS_BIND = 4096
MS_SLAVE = 1 << 19
MNT_DETACH = 2
OPEN_TREE_CLONE = 1
AT_FDCWD = -100
REFUSED = ("EPERM", "EACCES", "EROFS")


@attack("EPERM", "ENOSYS")
def mount_a_tmpfs(event: Event) -> None:
    syscall("mount", b"none", b"/tmp", b"tmpfs", 0, None)


@attack("EPERM", "ENOSYS")
def mount_proc(event: Event) -> None:
    syscall("mount", b"proc", b"/tmp", b"proc", 0, None)


@attack("EPERM", "ENOSYS")
def bind_over_the_handler(event: Event) -> None:
    syscall("mount", b"/tmp", b"/handler", None, MS_BIND, None)


@attack("EPERM", "ENOSYS")
def remount_the_handler_writable(event: Event) -> None:
    syscall("mount", None, b"/handler", None, MS_REMOUNT | MS_BIND, None)


@attack("EPERM", "ENOSYS")
def remount_the_root_writable(event: Event) -> None:
    syscall("mount", None, b"/", None, MS_REMOUNT | MS_BIND, None)


@attack("EPERM", "ENOSYS", "EINVAL")
def clear_read_only_by_attribute(event: Event) -> None:
    """mount_setattr can clear what mount cannot."""
    clear_read_only = (0).to_bytes(8, "little") + (1).to_bytes(8, "little") + bytes(16)
    syscall("mount_setattr", AT_FDCWD, b"/handler", 0, clear_read_only, 32)


@attack("EPERM", "ENOSYS")
def unmount_the_handler(event: Event) -> None:
    syscall("umount2", b"/handler", MNT_DETACH)


@attack("EPERM", "ENOSYS")
def unmount_proc(event: Event) -> None:
    """What a mask on /proc hides would show."""
    syscall("umount2", b"/proc", MNT_DETACH)


@attack("EPERM", "ENOSYS")
def copy_a_mount(event: Event) -> None:
    syscall("open_tree", AT_FDCWD, b"/", OPEN_TREE_CLONE)


@attack("EPERM", "ENOSYS")
def open_a_file_system(event: Event) -> None:
    syscall("fsopen", b"tmpfs", 0)


@attack("EPERM", "ENOSYS", "EBADF")
def move_a_mount(event: Event) -> None:
    syscall("move_mount", AT_FDCWD, b"/handler", AT_FDCWD, b"/tmp", 0)


@attack("EPERM", "ENOSYS")
def change_the_root(event: Event) -> None:
    syscall("chroot", b"/tmp")


@attack("EPERM", "ENOSYS")
def pivot_the_root(event: Event) -> None:
    syscall("pivot_root", b"/tmp", b"/tmp")


@attack("the same")
def climb_over_the_root(event: Event) -> str:
    """Parents of the root, and of each mapped folder, are the root."""
    root = os.stat("/")
    for path in ("/..", "/../../..", "/host/..", "/handler/..", "/tmp/.."):
        if not os.path.samestat(os.stat(path), root):
            return f"{path} is elsewhere"
    return "the same"


@attack(*REFUSED)
def make_a_disk_device(event: Event) -> None:
    os.mknod("/tmp/disk", 0o600 | stat.S_IFBLK, os.makedev(8, 0))


@attack(*REFUSED)
def make_a_memory_device(event: Event) -> None:
    os.mknod("/tmp/mem", 0o600 | stat.S_IFCHR, os.makedev(1, 1))


@attack("none")
def open_a_disk(event: Event) -> str:
    """No block device stands anywhere below /dev."""
    found = []
    for folder, _, files in os.walk("/dev"):
        for name in files:
            path = os.path.join(folder, name)
            if stat.S_ISBLK(os.lstat(path).st_mode):
                found.append(path)
    return f"found {found}" if found else "none"


@attack("harmless")
def use_another_device(event: Event) -> str:
    """The devices that are there give nothing but zeroes, randomness and the own terminal."""
    harmless = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"}
    found = []
    for folder, _, files in os.walk("/dev"):
        for name in files:
            path = os.path.join(folder, name)
            # Not through links: /dev/stdin is a name for the own descriptor 0.
            is_device = stat.S_ISCHR(os.lstat(path).st_mode)
            if is_device and name not in harmless and "/fd" not in path and "/pts" not in path:
                found.append(path)
    return f"found {found}" if found else "harmless"


def _write(path: str) -> None:
    with open(path, "a") as file:
        file.write("#")


@attack(*REFUSED)
def change_the_code(event: Event) -> None:
    _write("/handler/lambda_func.py")


@attack(*REFUSED)
def add_to_the_code(event: Event) -> None:
    _write("/handler/more.py")


@attack(*REFUSED)
def make_the_code_writable(event: Event) -> None:
    os.chmod("/handler/lambda_func.py", 0o777)


@attack(*REFUSED, "ENOENT")
def add_to_the_packages(event: Event) -> None:
    _write("/packages/more.py")


@attack(*REFUSED, "ENOENT")
def change_the_guest(event: Event) -> None:
    import olguest

    _write(olguest.__file__)


@attack(*REFUSED)
def change_the_base(event: Event) -> None:
    _write("/usr/bin/ol-attack")


@attack(*REFUSED)
def change_the_interpreter(event: Event) -> None:
    _write(os.path.realpath(os.__file__))


@attack(*REFUSED)
def change_the_users(event: Event) -> None:
    _write("/etc/passwd")


@attack(*REFUSED)
def write_to_the_root(event: Event) -> None:
    _write("/ol-attack")


@attack(*REFUSED, "ENOENT")
def read_the_password_hashes(event: Event) -> None:
    open("/etc/shadow").close()


@attack("EACCES", "ENOENT", "empty")
def read_the_home_of_root(event: Event) -> str:
    names = [name for name in os.listdir("/root") if not name.startswith(".")]
    return f"saw {names}" if names else "empty"


@attack("EACCES", "ENOENT", "empty")
def read_homes(event: Event) -> str:
    return f"saw {os.listdir('/home')}" if os.listdir("/home") else "empty"


@attack("EACCES", "ENOENT", "EPERM")
def read_a_private_key(event: Event) -> None:
    os.listdir("/etc/ssl/private")


@attack("ENOENT", "EACCES")
def read_a_file_of_the_host(event: Event) -> None:
    """A file that the suite made in its own folder."""
    open(event["host_file"]).close()


@attack("nowhere")
def find_a_file_of_the_host(event: Event) -> str:
    """The same file, wherever it might be mapped."""
    wanted = os.path.basename(event["host_file"])
    for folder, below, files in os.walk("/"):
        if folder == "/":
            below[:] = [name for name in below if name not in ("proc", "sys")]
        if wanted in files:
            return f"in {folder}"
    return "nowhere"


@attack("nowhere")
def follow_the_roots_of_processes(event: Event) -> str:
    """/proc/<pid>/root and cwd of anything that is in sight."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            for link in ("root", "cwd"):
                path = f"/proc/{name}/{link}{event['host_file']}"
                if os.path.exists(path):
                    return f"through {path}"
    return "nowhere"


@attack("EPERM", "EACCES")
def replace_the_socket(event: Event) -> None:
    """The worker's socket, to answer for it."""
    os.rename("/host/server_pipe", "/host/old")


@attack("EPERM", "EACCES")
def remove_the_socket(event: Event) -> None:
    os.unlink("/host/server_pipe")


@attack("EPERM", "EACCES")
def replace_the_output(event: Event) -> None:
    """By a link, so that the operator who looks would read another file."""
    os.symlink("/etc/shadow", "/host/link")
    os.replace("/host/link", "/host/stdout")


@attack("EPERM", "EACCES", "ECONNREFUSED")
def connect_a_second_time(event: Event) -> None:
    """The worker accepts once; a second connection finds nobody."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as second:
        second.connect("/host/server_pipe")


@attack("not set-uid")
def leave_a_setuid_program_for_the_host(event: Event) -> str:
    """A set-uid file in the shared folder is the instance's user's, and no other's."""
    with open("/host/program", "w") as file:
        file.write("#!/bin/sh\nid\n")
    os.chmod("/host/program", 0o6755)
    return "not set-uid" if os.stat("/host/program").st_uid == os.getuid() != 0 else "root's"
