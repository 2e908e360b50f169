"""Says whether the machine is short of memory."""

from __future__ import annotations

import re
from pathlib import Path

LEAST_FREE = 20
"""This part of the machine's memory is to stay available: a twentieth."""


def shortage_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Say how much must be freed for enough to be available; 0 when enough is, or nobody knows."""
    try:
        fields = dict(re.findall(r"(?m)^(MemTotal|MemAvailable):\s+(\d+) kB$", meminfo.read_text()))
    except OSError:
        return 0
    if len(fields) < len(("MemTotal", "MemAvailable")):
        return 0
    wanted_kb = int(fields["MemTotal"]) // LEAST_FREE
    return max(0, wanted_kb - int(fields["MemAvailable"])) * 1024
