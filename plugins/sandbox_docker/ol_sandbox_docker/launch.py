"""Starts a container and takes hold of its first process."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from olcore.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ol_sandbox_docker.engine import Engine


def started(
    engine: Engine, name: str, described: dict[str, Any], left: Callable[[str], object]
) -> tuple[str, int]:
    """Create and start a container; returns its id, and a pidfd of its first process.

    Args:
        engine: Where.
        name: Of the container.
        described: The engine's own JSON.
        left: Called with the id of a container that could not be started, nor removed.

    Raises:
        SandboxError: The engine refuses.
    """
    container = engine.create(name, described)
    try:
        engine.start(container)
        state = engine.inspect(container)["State"]
        pidfd = _held(container, int(state["Pid"])) if state["Pid"] else None
    except BaseException:
        remove(engine, container, left)
        raise
    return container, _ended() if pidfd is None else pidfd


def remove(engine: Engine, container: str, left: Callable[[str], object]) -> None:
    """Kill and remove a container; *left* is called with its id when the engine is away."""
    try:
        engine.remove(container)
    except SandboxError:
        left(container)


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
