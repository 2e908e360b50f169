"""Mounts and unmounts folders of this machine, by the programs that every Linux has."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from olcore.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SOURCE = "ol-docker"
"""What stands as the device in /proc/self/mountinfo, so that what a dead worker left can be found."""


def tmpfs(folder: Path, options: str) -> None:
    """Mount a tmpfs of ours on *folder*.

    Raises:
        SandboxError: The system refuses.
    """
    _mount(folder, "-t", "tmpfs", "-o", f"nosuid,nodev,{options}", _SOURCE)


def share(folder: Path) -> None:
    """Let later mounts in *folder* show in containers that already run."""
    _mount(folder, "--make-shared")


def bind(source: Path, folder: Path) -> None:
    """Show *source* at *folder*."""
    _mount(folder, "--bind", str(source))


def bind_read_only(source: Path, folder: Path, staging: Path) -> None:
    """Show *source* at *folder* so that nobody sees it writable even for a moment.

    A bind takes its flags from what it binds, and a change of flags reaches no copy that has been made already. So it is
    made read-only at *staging*, where no container looks, and bound from there.
    """
    bind(source, staging)
    try:
        _mount(staging, "-o", "remount,bind,ro,nosuid,nodev")
        bind(staging, folder)
    finally:
        unmount(staging)


def unmount(folder: Path) -> None:
    """Unmount *folder* and what is mounted in it; never raises."""
    if _run("umount", "--recursive", str(folder)).returncode != 0:
        # Someone looks into it: it goes when they leave.
        _run("umount", "--recursive", "--lazy", str(folder))


def ours(below: Path) -> set[Path]:
    """Every tmpfs of ours below *below*."""
    return {
        target for target, source in _all() if source == _SOURCE and target.is_relative_to(below)
    }


def is_mounted(folder: Path) -> bool:
    """Whether something is mounted on *folder* itself."""
    return any(target == folder for target, _ in _all())


def _all() -> Iterator[tuple[Path, str]]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        # Blanks and backslashes in a path are written as octal escapes.
        target = left.split()[4].encode().decode("unicode_escape").encode("latin-1").decode()
        yield Path(target), right.split()[1]


def _mount(folder: Path, *arguments: str) -> None:
    done = _run("mount", *arguments, str(folder))
    if done.returncode != 0:
        raise SandboxError(f"cannot mount on {str(folder)!r}: {done.stderr.strip()}")


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
