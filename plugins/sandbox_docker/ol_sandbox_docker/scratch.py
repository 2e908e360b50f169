"""Makes scratch folders that the kernel bounds: each is a tmpfs, whose pages count as memory of who writes them."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ol_sandbox_docker.containers import tmpfs_options
from olcore.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SOURCE = "ol-docker"
"""What stands as the device in /proc/self/mountinfo, so that clean finds ours."""


def make(folder: Path, size_mb: int) -> None:
    """Make *folder* and mount its tmpfs.

    Raises:
        SandboxError: It cannot be mounted; *folder* is gone again.
    """
    folder.mkdir()
    options = f"nosuid,nodev,{tmpfs_options(size_mb)}"
    done = _run("mount", "-t", "tmpfs", "-o", options, _SOURCE, str(folder))
    if done.returncode != 0:
        folder.rmdir()
        raise SandboxError(f"cannot mount a tmpfs on {str(folder)!r}: {done.stderr.strip()}")


def remove(folder: Path) -> None:
    """Unmount and remove *folder*; idempotent, never raises."""
    if folder in mounted(folder.parent):
        _unmount(folder)
    # The tmpfs took its contents along; whatever stands in the folder below it is the host's own.
    with suppress(OSError):
        folder.rmdir()
    if not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)


def clean(below: Path) -> list[str]:
    """Remove every scratch folder of ours below *below*; one line for each."""
    found = sorted(mounted(below))
    for folder in found:
        _unmount(folder)
        with suppress(OSError):
            folder.rmdir()
    return [f"unmounted {folder}" for folder in found]


def mounted(below: Path) -> set[Path]:
    """Every mount of ours below *below*."""
    return {target for target in _targets() if target.is_relative_to(below)}


def _targets() -> Iterator[Path]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.split()[1] == _SOURCE:
            # Blanks and backslashes in a path are written as octal escapes.
            target = left.split()[4].encode().decode("unicode_escape").encode("latin-1").decode()
            yield Path(target)


def _unmount(folder: Path) -> None:
    if _run("umount", str(folder)).returncode != 0:
        # Someone looks into it: it goes when they leave.
        _run("umount", "--lazy", str(folder))


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
