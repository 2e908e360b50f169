"""Plans the root file system that all sandboxes of a worker share, and builds it.

The root is a small tmpfs with bind mounts in it, put together in a mount namespace that nobody else sees, then cloned
as one read-only tree. Every file in it belongs to the host's root, an id that is mapped in no sandbox: a mount's
read-only flag can be cleared by the root of a user namespace, ownership cannot (SOCK.md).

With an empty base the root is the host's own /usr, read where it lies, and an /etc made here: nothing of /root, /home,
/var or the secrets of /etc. Otherwise it is every folder of the base. Standard library only: the launcher, which runs
without site-packages, builds it.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from ol_sandbox_sock import linux

OURS = "/opt/olcore"
"""Where our own code is inside."""

_SAFE = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_MADE_HERE = frozenset(
    {"dev", "proc", "sys", "tmp", "run", "host", "handler", "packages", "etc", "opt"}
)
_FROM_HOST_ETC = (
    "alternatives",
    "ca-certificates",
    "ld.so.cache",
    "localtime",
    "mime.types",
    "pki/ca-trust/extracted",
    "pki/tls/certs",
    "protocols",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
)
_USERS = (
    "root:x:0:0:root:/:/usr/sbin/nologin\n"
    "user:x:1000:1000:user:/tmp:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
)
_GROUPS = "root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n"
_NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n"
_HOSTS = "127.0.0.1 localhost\n::1 localhost\n"


@dataclass(frozen=True)
class Folder:
    """Make a folder, its parents too."""

    path: str
    mode: int = 0o755

    def describe(self) -> str:
        """Say it in one line."""
        return f"folder {self.path}"

    def apply(self, root: str) -> None:
        """Do it below *root*."""
        os.makedirs(root + self.path, exist_ok=True)
        os.chmod(root + self.path, self.mode)


@dataclass(frozen=True)
class Text:
    """Make a file with a text."""

    path: str
    text: str

    def describe(self) -> str:
        """Say it in one line."""
        return f"file {self.path}, {len(self.text)} bytes"

    def apply(self, root: str) -> None:
        """Do it below *root*."""
        os.makedirs(os.path.dirname(root + self.path), exist_ok=True)
        with open(root + self.path, "w") as file:
            file.write(self.text)
        os.chmod(root + self.path, 0o644)


@dataclass(frozen=True)
class Link:
    """Make a symbolic link."""

    path: str
    target: str

    def describe(self) -> str:
        """Say it in one line."""
        return f"link {self.path} -> {self.target}"

    def apply(self, root: str) -> None:
        """Do it below *root*."""
        os.symlink(self.target, root + self.path)


@dataclass(frozen=True)
class Bind:
    """Show a file or folder of the host, read-only and without set-user-id bits."""

    source: str
    path: str
    devices: bool = False

    def describe(self) -> str:
        """Say it in one line."""
        return f"bind {self.source} -> {self.path}"

    def apply(self, root: str) -> None:
        """Do it below *root*."""
        target = root + self.path
        if os.path.isdir(self.source):
            os.makedirs(target, exist_ok=True)
        elif not os.path.lexists(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        tree = linux.open_tree(
            linux.AT_FDCWD,
            self.source,
            linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_RECURSIVE,
        )
        try:
            # nodev would make /dev/null useless too, so device nodes are bound one by one and keep theirs.
            attributes = _SAFE if self.devices else _SAFE | linux.MOUNT_ATTR_NODEV
            linux.mount_setattr(tree, "", linux.AT_EMPTY_PATH | linux.AT_RECURSIVE, attributes)
            linux.move_mount(tree, "", linux.AT_FDCWD, target, linux.MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(tree)


Step = Folder | Text | Link | Bind


@dataclass(frozen=True)
class Interpreter:
    """The Python that guests run.

    Args:
        executable: Its path inside.
        prefix: The folder that it needs and that the base does not have; empty when it has all.
    """

    executable: str
    prefix: str = ""


@dataclass(frozen=True)
class Layout:
    """What the root is made of; paths are the host's.

    Args:
        base: Folder with a root file system; empty means the host's own /usr.
        interpreter: The Python that guests run.
        guest: The folder of ``olcore.guest``.
        sock: The folder of ``ol_sandbox_sock``.
        packages: The folder of installed wheels.
        nameservers: Addresses for resolv.conf.
        filters: The folder with the compiled seccomp filters; empty for none.
    """

    base: str
    interpreter: Interpreter
    guest: str
    sock: str
    packages: str
    nameservers: tuple[str, ...] = ()
    filters: str = ""


def plan(layout: Layout) -> list[Step]:
    """List what has to be done, in order, to make the root."""
    steps: list[Step] = [Folder("/etc"), Folder("/opt"), *_system(layout.base)]
    prefix = layout.interpreter.prefix
    if prefix:
        steps.append(Bind(prefix, prefix))
    steps += _etc(layout)
    steps.append(Folder("/dev"))
    steps += [Bind(f"/dev/{name}", f"/dev/{name}", devices=True) for name in _DEVICES]
    steps += [
        Link("/dev/fd", "/proc/self/fd"),
        Link("/dev/stdin", "/proc/self/fd/0"),
        Link("/dev/stdout", "/proc/self/fd/1"),
        Link("/dev/stderr", "/proc/self/fd/2"),
        Folder("/dev/shm"),
        *(Folder(path) for path in ("/proc", "/tmp", "/run", "/host", "/handler")),
        Bind(layout.packages, "/packages"),
        Bind(layout.guest, f"{OURS}/olguest"),
        Bind(layout.sock, f"{OURS}/ol_sandbox_sock"),
    ]
    if layout.filters:
        steps.append(Bind(layout.filters, f"{OURS}/seccomp"))
    return steps


def _system(base: str) -> list[Step]:
    steps: list[Step] = []
    for name in sorted(os.listdir(base or "/")):
        source = f"{base}/{name}"
        if base:
            wanted = name not in _MADE_HERE
        else:
            wanted = name == "usr" or name in {"bin", "sbin"} or name.startswith("lib")
        if not wanted:
            continue
        if os.path.islink(source):
            steps.append(Link(f"/{name}", os.readlink(source)))
        elif os.path.isdir(source):
            steps.append(Bind(source, f"/{name}"))
    if base and os.path.isdir(f"{base}/opt"):
        steps += [
            Bind(f"{base}/opt/{name}", f"/opt/{name}") for name in sorted(os.listdir(f"{base}/opt"))
        ]
    return steps


def _etc(layout: Layout) -> list[Step]:
    made = {
        "/etc/passwd": _USERS,
        "/etc/group": _GROUPS,
        "/etc/nsswitch.conf": _NSSWITCH,
        "/etc/hosts": _HOSTS,
        "/etc/resolv.conf": "".join(f"nameserver {address}\n" for address in layout.nameservers),
    }
    steps: list[Step] = [Text(path, text) for path, text in made.items()]
    etc = f"{layout.base}/etc"
    # An image's own /etc holds nothing of this machine; of the host's, only what is on the list above is shown.
    names = sorted(os.listdir(etc)) if layout.base and os.path.isdir(etc) else _FROM_HOST_ETC
    for name in names:
        source = f"{etc}/{name}"
        if f"/etc/{name}" in made or not os.path.exists(source):
            continue
        if os.path.islink(source) and layout.base:
            steps.append(Link(f"/etc/{name}", os.readlink(source)))
        elif stat.S_ISREG(os.stat(source).st_mode) or os.path.isdir(source):
            steps.append(Bind(os.path.realpath(source), f"/etc/{name}"))
    return steps


def build(steps: list[Step], folder: str) -> int:
    """Apply *steps* on a fresh tmpfs at *folder*, and return a detached read-only clone of the whole tree.

    The caller is in a mount namespace of its own, private to it, and ends with it.
    """
    linux.mount("tmpfs", folder, "tmpfs", linux.MS_NOSUID, "size=4m,mode=755")
    for step in steps:
        step.apply(folder)
    flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_RECURSIVE
    tree = linux.open_tree(linux.AT_FDCWD, folder, flags)
    linux.mount_setattr(tree, "", linux.AT_EMPTY_PATH | linux.AT_RECURSIVE, linux.MOUNT_ATTR_RDONLY)
    return tree
