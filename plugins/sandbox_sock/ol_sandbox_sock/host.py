"""What SOCK takes from the host: the Python that guests run, DNS servers, and whether the machine has what it takes."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ol_sandbox_sock.root import Interpreter
from olcore.errors import BackendUnusableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ol_sandbox_sock.settings import SockSettings

_OLDEST_KERNEL = (5, 14)
"""mount_setattr came with 5.12, cgroup.kill with 5.14."""
_RESOLV_CONFS = ("/run/systemd/resolve/resolv.conf", "/etc/resolv.conf")
"""systemd's list of the real servers first: its /etc/resolv.conf names a stub on loopback, which no sandbox reaches."""


def interpreter(base: str, wanted: str) -> Interpreter:
    """Find the Python that guests run.

    Args:
        base: Folder with a root file system; empty means the host's.
        wanted: Its absolute path inside, if the operator named one.

    Raises:
        BackendUnusableError: The base has none.
    """
    if wanted:
        if not _inside(base, wanted):
            raise BackendUnusableError(f"sock.interpreter: the base has no {wanted!r}")
        return Interpreter(wanted)
    if not base:
        executable = str(Path(sys.executable).resolve())
        prefix = os.path.realpath(sys.base_prefix)
        return Interpreter(
            executable, "" if prefix == "/usr" or prefix.startswith("/usr/") else prefix
        )
    for candidate in ("/usr/local/bin/python3", "/usr/bin/python3", "/bin/python3"):
        if _inside(base, candidate):
            return Interpreter(candidate)
    raise BackendUnusableError(
        f"the base {base!r} has no python3",
        hint="put one into it, or name it with sock.interpreter",
    )


def _inside(base: str, path: str) -> bool:
    # A link in the base is meant for there: its target is looked up below the base, a few steps at the most.
    for _ in range(8):
        real = Path(base + path)
        if not real.is_symlink():
            return real.is_file()
        target = str(real.readlink())
        path = target if target.startswith("/") else os.path.normpath(Path(path).parent / target)
    return False


def nameservers(configured: Sequence[str]) -> tuple[str, ...]:
    """List the DNS servers for handlers: the configured ones, else the host's that are not on loopback."""
    if configured:
        return tuple(configured)
    for path in _RESOLV_CONFS:
        try:
            text = Path(path).read_text()
        except OSError:
            continue
        found = re.findall(r"^nameserver\s+(\S+)", text, re.MULTILINE)
        real = tuple(
            address for address in found if not address.startswith("127.") and address != "::1"
        )
        if real:
            return real[:3]  # resolv.conf(5): MAXNS
    return ()


def why_unusable(settings: SockSettings) -> str | None:
    """Say why SOCK cannot run here, with the way out; ``None`` when it can. Changes nothing."""
    if sys.platform != "linux":
        return "SOCK needs Linux; use docker elsewhere"
    release = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])
    if release < _OLDEST_KERNEL:
        return f"the kernel is {platform.release()}; SOCK needs {_OLDEST_KERNEL[0]}.{_OLDEST_KERNEL[1]} or newer"
    if os.geteuid() != 0:
        return "SOCK makes namespaces and mounts; run as root"
    if not Path("/proc/self/ns/user").exists():
        return "the kernel has no user namespaces (CONFIG_USER_NS)"
    # Imported here, because `olcore plugins` must not pay for what it does not use.
    from ol_sandbox_sock import cgroups, seccomp

    reason = cgroups.why_unusable()
    if reason is None and settings.seccomp == "on":
        reason = seccomp.why_unusable()
    return reason
