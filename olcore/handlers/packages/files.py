"""Files that several processes share: replaced whole, or locked."""

from __future__ import annotations

import asyncio
import fcntl
import os
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_POLL_S = 0.05


def write_whole(path: Path, data: bytes) -> None:
    """Write *data* to *path* so that a reader sees the old file or the new one, never a part; mode 0600."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@asynccontextmanager
async def locked(file: Path, timeout_s: float, *, shared: bool = False) -> AsyncIterator[None]:
    """Hold the lock *file*, made with its folder when needed.

    Raises:
        TimeoutError: Somebody else held it for so long.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        await asyncio.wait_for(_flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX), timeout_s)
        yield
    finally:
        os.close(fd)


async def _flock(fd: int, kind: int) -> None:
    # Asked again and again, because a thread that waits inside flock could neither be cancelled nor given up.
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(_POLL_S)
        else:
            return
