"""Starts a container and takes hold of its first process."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from olcore.errors import SandboxError

if TYPE_CHECKING:
    from ol_sandbox_docker.engine import Engine


def started(engine: Engine, name: str, described: dict[str, Any]) -> tuple[str, int]:
    """Create and start a container; returns its id, and a pidfd of its first process.

    Nothing is left when it fails and the engine still answers.

    Raises:
        SandboxError: The engine refuses.
    """
    container = engine.create(name, described)
    try:
        engine.start(container)
        state = engine.inspect(container)["State"]
        pidfd = _held(container, int(state["Pid"])) if state["Pid"] else None
    except BaseException:
        with suppress(SandboxError):  # the engine is away: clean finds it by its label
            engine.remove(container)
        raise
    return container, _ended() if pidfd is None else pidfd


def _held(container: str, pid: int) -> int | None:
    """Open a pidfd of the container's first process; ``None`` when that has ended already."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    # It could have ended before pidfd_open and its number been given to another; then that is in no cgroup of ours.
    with suppress(OSError):
        if container in Path(f"/proc/{pid}/cgroup").read_text():
            return pidfd
    os.close(pidfd)
    return None


def _ended() -> int:
    """A descriptor that reads as ended, in place of the pidfd of a process that is no more."""
    reader, writer = os.pipe()
    os.close(writer)
    return reader
