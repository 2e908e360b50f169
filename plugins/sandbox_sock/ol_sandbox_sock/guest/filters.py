"""Where the compiled seccomp filters are inside."""

from __future__ import annotations

import contextlib

OURS = "/opt/olcore"


def read(name: str) -> bytes:
    """Return the filter for a ``cell`` or a ``zygote``; nothing when the operator has turned filters off."""
    with contextlib.suppress(FileNotFoundError), open(f"{OURS}/seccomp/{name}.bpf", "rb") as file:
        return file.read()
    return b""
