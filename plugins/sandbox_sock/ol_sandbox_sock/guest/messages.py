"""Packets between the worker and what runs inside: one JSON object each, descriptors beside it, over SOCK_SEQPACKET.

Only ids, numbers and descriptors travel here, never a handler's name, environment or event: what a zygote once had in
its memory, its next child can find there (SOCK.md).
"""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

LARGEST = 65536
MOST_FDS = 16
BROKEN = 70
"""Exit code of a cell that could not be set up (EX_SOFTWARE of sysexits.h); its traceback is in the zygote's log."""


def send(link: socket.socket, packet: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one packet with descriptors."""
    raw = json.dumps(packet).encode()
    if fds:
        socket.send_fds(link, [raw], list(fds))
    else:
        link.send(raw)


def receive(link: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Receive one packet and its descriptors, which are close-on-exec.

    The packet is ``None`` when the other end is gone, or says what is no packet of ours.
    """
    raw, fds, _flags, _address = socket.recv_fds(link, LARGEST, MOST_FDS, socket.MSG_CMSG_CLOEXEC)
    try:
        packet = json.loads(raw)
    except (ValueError, RecursionError):  # of nothing, too
        packet = None
    return (packet if isinstance(packet, dict) else None), fds
