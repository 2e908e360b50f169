"""The frames between worker and guest; the same file on both sides (docs/reference/guest-protocol.md tells it in prose).

A frame is a header of 8 bytes, then its payload::

    0       4      5       6        8
    +-------+------+-------+--------+---------
    | size  | kind | flags | stream | payload ...        (big-endian; size counts the payload only)
    +-------+------+-------+--------+---------

``stream`` numbers the exchange that a frame belongs to; a guest of this version serves one at a time and answers with the
number it was given. ``flags`` is 0. A receiver ends the connection on a kind it does not know, on unknown flags, and on
a payload over its limit.
"""

import struct

VERSION = 1

HEADER = struct.Struct("!IBBH")

# Guest to worker.
HELLO = 1
"""First frame: JSON ``{"protocol", "python", "implementation", "machine", "libc"}``."""
READY = 2
"""The handler is loaded: JSON ``{"load_ms", "imported": [[module, file, self_us, self_kb], ...]}``."""
REPLY = 3
"""The result as JSON bytes."""
ERROR = 4
"""JSON ``{"code", "message", ...}``, code one of ``load_failed``, ``bad_event``, ``handler_raised``, ``bad_result``."""
CHUNK = 5
"""Reserved: a part of a streamed reply; REPLY or ERROR ends it."""

# Worker to guest.
INIT = 16
"""JSON ``{"protocol", "handler", "entry", "sys_path", "site_dirs", "environment", "max_result_bytes", "measure_imports"}``."""
EVENT = 17
"""The body of a request, untouched; no bytes at all stand for ``{}``."""
HTTP_EVENT = 18
"""Reserved: an event with method, path and headers."""


def frame(kind: int, payload: bytes, stream: int = 0) -> bytes:
    """Put one frame together.

    Args:
        kind: One of the kinds above.
        payload: Less than 4 GiB.
        stream: 0 to 65535.
    """
    return HEADER.pack(len(payload), kind, 0, stream) + payload
