"""Thin wrappers around Linux system calls that Python's standard library lacks.

Each is named and ordered as its man page, does one call, and raises OSError with the errno and, where there is one, the
path. What an errno means for the caller is the caller's to say.

The worker imports this module, and it is also mounted into sandboxes beside the guest. So it imports the standard
library only, keeps to Python 3.9's syntax, and is the only module that uses ctypes. Function objects are bound once at
import: looking one up and converting untyped arguments costs more than most of these calls.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:
    from collections.abc import Callable

Path = Union[str, bytes, "os.PathLike[str]"]

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_NOSYMFOLLOW = 0x100
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MS_RELATIME = 0x200000

MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC

MOVE_MOUNT_F_SYMLINKS = 0x1
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_SYMLINKS = 0x10
MOVE_MOUNT_T_EMPTY_PATH = 0x40

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

FSOPEN_CLOEXEC = 0x1
FSMOUNT_CLOEXEC = 0x1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6

LAST_FD = 0xFFFFFFFF
CLOSE_RANGE_UNSHARE = 0x2
CLOSE_RANGE_CLOEXEC = 0x4

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

SECCOMP_MODE_FILTER = 2

SIOCADDRT = 0x890B
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
SIOCSIFADDR = 0x8916
SIOCSIFNETMASK = 0x891C
SIOCSARP = 0x8955
IFF_UP = 0x1
RTF_UP, RTF_GATEWAY, RTF_HOST = 0x1, 0x2, 0x4
ATF_COM, ATF_PERM = 0x2, 0x4
ARPHRD_ETHER = 1

_int, _uint, _long, _ulong = ctypes.c_int, ctypes.c_uint, ctypes.c_long, ctypes.c_ulong
_size, _text, _pointer = ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p
_libc = ctypes.CDLL(None, use_errno=True)

# Calls older than 2019 have a number of their own on each machine, the later ones one number on all. -1 is no system
# call on any of them: the kernel answers ENOSYS, so an unknown machine fails when it calls, not when it imports.
_NUMBERS = {
    "x86_64": {"pivot_root": 155, "setgroups": 116, "setresuid": 117, "setresgid": 119},
    "aarch64": {"pivot_root": 41, "setgroups": 159, "setresuid": 147, "setresgid": 149},
}.get(os.uname().machine, {})


def _bound(name: str, *argtypes: Any) -> Callable[..., int]:  # noqa: ANN401 -- ctypes has no public name for it
    function = _libc[
        name
    ]  # not an attribute: indexing makes a new object each time, with argument types of its own
    function.argtypes = argtypes
    function.restype = _int
    return function


def _syscall(number: int, *argtypes: Any) -> Callable[..., int]:  # noqa: ANN401 -- ditto
    function = _libc["syscall"]
    function.argtypes = (_long, *argtypes)
    function.restype = _long

    def call(*arguments: object) -> int:
        return int(function(number, *arguments))

    return call


_unshare = _bound("unshare", _int)
_setns = _bound("setns", _int, _int)
_mount = _bound("mount", _text, _text, _text, _ulong, _text)
_umount2 = _bound("umount2", _text, _int)
_prctl = _bound("prctl", _int, _ulong, _ulong, _ulong, _ulong)
_capset = _bound("capset", _text, _text)
_sethostname = _bound("sethostname", _text, _size)
_pivot_root = _syscall(_NUMBERS.get("pivot_root", -1), _text, _text)
_setgroups = _syscall(_NUMBERS.get("setgroups", -1), _size, _text)
_setresuid = _syscall(_NUMBERS.get("setresuid", -1), _uint, _uint, _uint)
_setresgid = _syscall(_NUMBERS.get("setresgid", -1), _uint, _uint, _uint)
_pidfd_send_signal = _syscall(424, _int, _int, _pointer, _uint)
_open_tree = _syscall(428, _int, _text, _uint)
_move_mount = _syscall(429, _int, _text, _int, _text, _uint)
_fsopen = _syscall(430, _text, _uint)
_fsconfig = _syscall(431, _int, _uint, _text, _text, _int)
_fsmount = _syscall(432, _int, _uint, _uint)
_pidfd_open = _syscall(434, _int, _uint)
_close_range = _syscall(436, _uint, _uint, _uint)
_mount_setattr = _syscall(442, _int, _text, _uint, _text, _size)


def _checked(result: int, call: str, path: Path | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", path)
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces that *flags* name for new ones."""
    _checked(_unshare(flags), "unshare")


def setns(fd: int, nstype: int) -> None:
    """Enter the namespace that *fd* refers to."""
    _checked(_setns(fd, nstype), "setns")


def mount(
    source: Path | None,
    target: Path,
    fstype: str | None,
    flags: int,
    data: str | None = None,
) -> None:
    """Mount *source* on *target*."""
    result = _mount(
        None if source is None else os.fsencode(source),
        os.fsencode(target),
        None if fstype is None else fstype.encode(),
        flags,
        None if data is None else data.encode(),
    )
    _checked(result, "mount", target)


def umount2(target: Path, flags: int) -> None:
    """Unmount *target*."""
    _checked(_umount2(os.fsencode(target), flags), "umount2", target)


def pivot_root(new_root: Path, put_old: Path) -> None:
    """Make *new_root* the root mount, and put the old one on *put_old*; both may be ``.`` (pivot_root(2), notes)."""
    _checked(_pivot_root(os.fsencode(new_root), os.fsencode(put_old)), "pivot_root", new_root)


def open_tree(dirfd: int, path: Path, flags: int) -> int:
    """Open the mount at *path*, or with OPEN_TREE_CLONE a detached copy of it, and return its descriptor."""
    return _checked(_open_tree(dirfd, os.fsencode(path), flags), "open_tree", path)


def move_mount(from_dirfd: int, from_path: Path, to_dirfd: int, to_path: Path, flags: int) -> None:
    """Attach or move a mount."""
    result = _move_mount(from_dirfd, os.fsencode(from_path), to_dirfd, os.fsencode(to_path), flags)
    _checked(result, "move_mount", to_path)


def mount_setattr(
    dirfd: int, path: Path, flags: int, attr_set: int, attr_clr: int = 0, propagation: int = 0
) -> None:
    """Change the attributes of a mount, with AT_RECURSIVE those of all below it."""
    attributes = struct.pack("=QQQQ", attr_set, attr_clr, propagation, 0)
    result = _mount_setattr(dirfd, os.fsencode(path), flags, attributes, len(attributes))
    _checked(result, "mount_setattr", path)


def fsopen(fstype: str, flags: int) -> int:
    """Open a context in which to configure a new file system."""
    return _checked(_fsopen(fstype.encode(), flags), "fsopen", fstype)


def fsconfig(fd: int, command: int, key: str | None, value: str | None, aux: int) -> None:
    """Set a parameter of a file system context, or create the file system."""
    result = _fsconfig(
        fd,
        command,
        None if key is None else key.encode(),
        None if value is None else value.encode(),
        aux,
    )
    _checked(result, "fsconfig", key)


def fsmount(fd: int, flags: int, attr_flags: int) -> int:
    """Return a detached mount of the file system that the context made."""
    return _checked(_fsmount(fd, flags, attr_flags), "fsmount")


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """Operate on the calling process or thread."""
    return _checked(_prctl(option, arg2, arg3, arg4, arg5), "prctl")


def close_range(first: int, last: int, flags: int = 0) -> None:
    """Close the descriptors from *first* up to and including *last*; ``LAST_FD`` closes all from *first* on."""
    _checked(_close_range(first, last, flags), "close_range")


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the thread's capabilities, each a bit mask."""
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, the calling thread
    halves = [(mask & 0xFFFFFFFF, mask >> 32) for mask in (effective, permitted, inheritable)]
    data = struct.pack("=6I", *(half[0] for half in halves), *(half[1] for half in halves))
    _checked(_capset(header, data), "capset")


def drop_bounding_set() -> None:
    """Remove every capability from the bounding set; needs CAP_SETPCAP, so do it before the last set*id call."""
    # The kernel knows its last capability, we do not: it answers EINVAL beyond.
    for capability in range(64):
        if _prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            if ctypes.get_errno() == errno.EINVAL and capability > 0:
                return
            _checked(-1, "prctl(PR_CAPBSET_DROP)")


def clear_capabilities() -> None:
    """Empty the ambient, effective, permitted and inheritable sets; needs no privilege."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    capset(0, 0, 0)


def drop_all_capabilities() -> None:
    """Empty the bounding set and all others."""
    drop_bounding_set()
    clear_capabilities()


def seccomp_load(bpf: bytes) -> None:
    """Filter the thread's system calls through *bpf*, ``struct sock_filter`` items; needs no-new-privileges first."""
    program = ctypes.create_string_buffer(bpf, len(bpf))
    fprog = struct.pack("HP", len(bpf) // 8, ctypes.addressof(program))  # struct sock_fprog
    buffer = ctypes.create_string_buffer(fprog, len(fprog))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(buffer))


def pidfd_open(pid: int, flags: int = 0) -> int:
    """Return a descriptor, close-on-exec, that refers to the process *pid*."""
    return _checked(_pidfd_open(pid, flags), "pidfd_open")


def pidfd_send_signal(pidfd: int, sig: int) -> None:
    """Send a signal to the process that *pidfd* refers to."""
    _checked(_pidfd_send_signal(pidfd, sig, None, 0), "pidfd_send_signal")


def sethostname(name: str) -> None:
    """Set the name of the host in this uts namespace."""
    raw = name.encode()
    _checked(_sethostname(raw, len(raw)), "sethostname")


# The kernel's set*id calls change one thread; glibc's, and so os.setresuid, signal every other thread to do the same and
# wait. These are for a process that was cloned without glibc's knowledge, in which those threads do not exist.


def setresuid(ruid: int, euid: int, suid: int) -> None:
    """Set the user ids of the calling thread alone."""
    _checked(_setresuid(ruid, euid, suid), "setresuid")


def setresgid(rgid: int, egid: int, sgid: int) -> None:
    """Set the group ids of the calling thread alone."""
    _checked(_setresgid(rgid, egid, sgid), "setresgid")


def setgroups(*groups: int) -> None:
    """Set the supplementary groups of the calling thread alone."""
    _checked(_setgroups(len(groups), struct.pack(f"={len(groups)}I", *groups)), "setgroups")


# netdevice(7): what a fresh network namespace needs, without a netlink library in the guest.


def _ioctl(request: int, argument: bytes, what: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as handle:
        try:
            return fcntl.ioctl(handle, request, argument)
        except OSError as error:
            raise OSError(error.errno, f"ioctl {request:#x}: {error.strerror}", what) from None


def _sockaddr(address: str) -> bytes:
    return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))


def interface_up(name: str) -> None:
    """Bring the interface up."""
    request = struct.pack("16sh22x", name.encode(), 0)
    flags = struct.unpack_from("16xh", _ioctl(SIOCGIFFLAGS, request, name))[0]
    _ioctl(SIOCSIFFLAGS, struct.pack("16sh22x", name.encode(), flags | IFF_UP), name)


def set_address(name: str, address: str, prefix: int = 32) -> None:
    """Give the interface its IPv4 address."""
    # SIOCSIFADDR guesses the prefix from the address's class; the mask replaces the guess, so the order matters.
    mask = socket.inet_ntoa(struct.pack("!I", 0xFFFFFFFF << (32 - prefix) & 0xFFFFFFFF))
    _ioctl(SIOCSIFADDR, struct.pack("16s16s8x", name.encode(), _sockaddr(address)), name)
    _ioctl(SIOCSIFNETMASK, struct.pack("16s16s8x", name.encode(), _sockaddr(mask)), name)


def _add_route(destination: str, mask: str, gateway: str, flags: int, device: str) -> None:
    name = ctypes.create_string_buffer(device.encode())
    route = struct.pack(
        "L16s16s16sHhLPhPLLH6x",  # struct rtentry of <linux/route.h>
        0,
        _sockaddr(destination),
        _sockaddr(gateway),
        _sockaddr(mask),
        RTF_UP | flags,
        0,
        0,
        0,
        0,
        ctypes.addressof(name),
        0,
        0,
        0,
    )
    _ioctl(SIOCADDRT, route, device)


def add_default_route(gateway: str, device: str) -> None:
    """Send everything through *gateway*, which is behind *device* whatever its address says."""
    # The kernel takes a gateway only when it has a route to it already: no network holds a /32's gateway.
    _add_route(gateway, "255.255.255.255", "0.0.0.0", RTF_HOST, device)  # noqa: S104 -- no gateway, not a bind
    _add_route("0.0.0.0", "0.0.0.0", gateway, RTF_GATEWAY, device)  # noqa: S104 -- the default route


def add_neighbour(address: str, hardware: str, device: str) -> None:
    """Tell the hardware address (``02:...``) of a neighbour for good, so that nobody is asked for it."""
    raw = bytes.fromhex(hardware.replace(":", ""))
    request = struct.pack(
        "16sH14si16s16s",  # struct arpreq of arp(7)
        _sockaddr(address),
        ARPHRD_ETHER,
        raw,
        ATF_COM | ATF_PERM,
        b"",
        device.encode(),
    )
    _ioctl(SIOCSARP, request, device)
