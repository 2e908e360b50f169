"""Makes scratch folders that the kernel bounds: each is a tmpfs, whose pages count as memory of who writes them."""

from __future__ import annotations

import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from ol_sandbox_docker import mounts
from ol_sandbox_docker.containers import tmpfs_options
from olcore.errors import SandboxError

if TYPE_CHECKING:
    from pathlib import Path


def make(folder: Path, size_mb: int) -> None:
    """Make *folder* and mount its tmpfs.

    Raises:
        SandboxError: It cannot be mounted; *folder* is gone again.
    """
    folder.mkdir()
    try:
        mounts.tmpfs(folder, tmpfs_options(size_mb))
    except SandboxError:
        folder.rmdir()
        raise


def remove(folder: Path) -> None:
    """Unmount and remove *folder*; idempotent, never raises."""
    if mounts.is_mounted(folder):
        mounts.unmount(folder)
    # The tmpfs took its contents along, and no sandbox has seen the folder below it.
    with suppress(OSError):
        folder.rmdir()


def clean(below: Path) -> list[str]:
    """Remove every mount of ours below *below*; one line for each."""
    found = sorted(mounts.ours(below), reverse=True)  # what is deeper comes first
    for folder in found:
        mounts.unmount(folder)
        with suppress(OSError):
            folder.rmdir()
    shutil.rmtree(below / "docker", ignore_errors=True)
    return [f"unmounted {folder}" for folder in found]
