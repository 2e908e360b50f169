"""Claims on what the workers of one machine share: held by a lock file, so that death gives a claim back.

The kernel drops a lock (flock(2)) when the last descriptor of the open file closes, however that comes about. The
descriptors are close-on-exec; a child that is forked and never executes keeps the claim alive with itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Claim:
    """One claimed name; ``close`` is idempotent."""

    def __init__(self, path: Path, fd: int) -> None:
        self.name = path.name
        self._path = path
        self._fd: int | None = fd

    def close(self) -> None:
        """Give it back."""
        fd, self._fd = self._fd, None
        if fd is not None:
            self._path.unlink(missing_ok=True)  # while it is locked, so that it is ours that goes
            os.close(fd)
            remove_empty(self._path.parent)


def claim(folder: Path, names: Iterable[str]) -> Claim | None:
    """Claim the first name that nobody holds; ``None`` when all are held."""
    for name in names:
        fd = _lock(folder / name)
        if fd is not None:
            return Claim(folder / name, fd)
    return None


def is_any_held(folder: Path) -> bool:
    """Whether a live process holds a name; removes what the dead left."""
    clean(folder)
    return folder.is_dir() and any(folder.iterdir())


def clean(folder: Path) -> list[str]:
    """Remove the lock files of the dead, and return the names."""
    removed = []
    for path in sorted(folder.glob("*")):
        fd = _lock(path)
        if fd is not None:
            Claim(path, fd).close()
            removed.append(path.name)
    return removed


def remove_empty(folder: Path) -> None:
    """Remove the folder and its parent, which all kinds of claims share, unless there is something in it."""
    for path in (folder, folder.parent):
        try:
            path.rmdir()
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.ENOENT, errno.EBUSY}:
                raise
            return


def _lock(path: Path) -> int | None:
    """Lock the file, made when it is missing; ``None`` when another holds it."""
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:  # never made, or just removed by a worker that ended
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its holder may have removed it after we opened it: then ours is a lock on nothing.
            if path.stat().st_ino == os.fstat(fd).st_ino:
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except FileNotFoundError:
            pass
        os.close(fd)
