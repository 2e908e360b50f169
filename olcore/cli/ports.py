"""Says whether a port is free, and who has it."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from pathlib import Path

from olcore.errors import ClusterError

_LISTEN = "0A"


def require_free(host: str, port: int) -> int:
    """Check that a worker could listen there, and return the port: a free one for port 0.

    Raises:
        ClusterError: It is taken, by whom if that can be seen; or the address is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As a server would: a connection that lingers in TIME_WAIT does not keep the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ClusterError(
                    f"port {port} of {host} is taken by {owner(port)}",
                    hint="stop that program, or choose another port with --port",
                ) from error
            raise ClusterError(
                f"cannot listen on port {port} of {host}: {error.strerror}",
                hint="check the address (worker_host, or --host) and --port",
            ) from error
        free: int = probe.getsockname()[1]
        return free


def owner(port: int) -> str:
    """Say which program listens on *port*."""
    inodes = set(_listening_inodes(port))
    for folder in Path("/proc").glob("[0-9]*"):
        # Processes end while we look, and another user's descriptors cannot be seen.
        with suppress(OSError):
            for link in (folder / "fd").iterdir():
                if str(link.readlink()) in inodes:
                    name = (folder / "comm").read_text().strip()
                    return f"process {folder.name} ({name})"
    return "another program"


def _listening_inodes(port: int) -> list[str]:
    found: list[str] = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                # sl, local address:port in hexadecimal, remote, state, queues, timer, retransmits, uid, timeout, inode
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    found.append(f"socket:[{fields[9]}]")
    return found
