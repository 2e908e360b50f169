"""The mounts that the worker makes: detached clones for instances, and the tmpfs that bounds a scratch folder."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ol_sandbox_sock import linux

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLONE = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_RECURSIVE
_SAFE = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
_QUIET = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
OUTPUT_MB = 4
"""What a package zygote may print."""
_INODES_PER_MB = 64
"""Scratch files have 16 KiB on average at the least: a bound on kernel memory, which tmpfs inodes take."""


def detached(folder: Path, *, writable: bool) -> int:
    """Clone the mount at *folder*, detached, and return its descriptor; it can be attached once."""
    tree = linux.open_tree(linux.AT_FDCWD, folder, _CLONE)
    try:
        attributes = _SAFE if writable else _SAFE | linux.MOUNT_ATTR_RDONLY
        linux.mount_setattr(tree, "", linux.AT_EMPTY_PATH | linux.AT_RECURSIVE, attributes)
    except BaseException:
        os.close(tree)
        raise
    return tree


def make_scratch(folder: Path, size_mb: int) -> None:
    """Make *folder* a tmpfs of *size_mb* MiB, root's and sticky; its pages are charged to who writes them."""
    folder.mkdir(mode=0o755)
    try:
        options = f"mode=1777,size={size_mb}m,nr_inodes={max(size_mb * _INODES_PER_MB, 256)}"
        linux.mount("tmpfs", folder, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, options)
    except BaseException:
        folder.rmdir()
        raise


def remove_scratch(folder: Path) -> None:
    """Unmount and remove *folder*; nothing in it is looked at, so no link in it is followed. Idempotent."""
    unmount(folder)
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()


def bound_output(folder: Path) -> None:
    """Bound what can be written to files in *folder*, which is there already: a small tmpfs is put on it."""
    linux.mount("tmpfs", folder, "tmpfs", _QUIET, f"mode=755,size={OUTPUT_MB}m,nr_inodes=16")


def unmount(folder: Path) -> None:
    """Take away what is mounted on *folder*, if something is."""
    try:
        linux.umount2(folder, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
    except OSError as error:
        # Not a mount point: an earlier call, or a start that failed half way.
        if error.errno not in {errno.EINVAL, errno.ENOENT}:
            raise


def below(folder: Path) -> Iterator[str]:
    """List the mount points at or below *folder*, the deepest first."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # proc_pid_mountinfo(5): space, tab, newline and backslash are written as octal escapes.
        point = (
            line.split(" ")[4]
            .encode()
            .decode("unicode_escape")
            .encode("latin-1")
            .decode(errors="surrogateescape")
        )
        if Path(point).is_relative_to(folder):
            points.append(point)
    return iter(sorted(points, key=len, reverse=True))


def clear(folder: Path) -> list[str]:
    """Unmount all below *folder*, remove it, and say what was there."""
    removed = []
    for point in below(folder):
        linux.umount2(point, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
        removed.append(f"mount {point}")
    if folder.exists():
        shutil.rmtree(folder)
        removed.append(f"folder {folder}")
    return removed
