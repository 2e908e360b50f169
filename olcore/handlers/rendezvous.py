"""Where a guest finds its worker: the socket and the output files in an instance's scratch folder.

The folder belongs to root and is sticky, so a guest can write into it and replace nothing of what is made here; all is
made through a descriptor of the folder and before the guest lives, so no link can lead astray.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

PIPE = "server_pipe"
OUTPUTS = ("stdout", "stderr")

_TAIL = 4096


class Rendezvous:
    """The listening end, until the one guest has come; entering makes it, leaving closes it.

    Args:
        folder: The scratch folder, freshly made; whoever made it also removes it and what is put into it here.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listener: socket.socket | None = None

    def __enter__(self) -> Self:
        directory = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            for name in OUTPUTS:
                _make_output(name, directory)
            self._listener = _listening(directory)
        finally:
            os.close(directory)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def accept(self) -> socket.socket:
        """Wait for the guest; nobody else can connect afterwards."""
        listener = self._listener
        if listener is None:
            raise ConnectionError("the guest has connected already")
        connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        # Closed before the guest is told what to load: no code of the handler ever sees it listen.
        self.close()
        return connection

    def close(self) -> None:
        """Stop listening; idempotent."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None


def _make_output(name: str, directory: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        os.fchmod(file, 0o666)  # whatever the umask: the guest has another uid
    finally:
        os.close(file)


def _listening(directory: int) -> socket.socket:
    # A socket's path has at most 108 bytes, and the cluster may be deep: hence the way through the descriptor.
    path = f"/proc/self/fd/{directory}/{PIPE}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(path)
        os.chmod(path, 0o666)  # noqa: PTH101, S103  # connecting needs write permission, and the guest has another uid
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    return listener


def tail(folder: Path, name: str) -> str:
    """Read the end of an output file, or nothing when that cannot be done safely.

    Args:
        folder: The scratch folder.
        name: ``stdout`` or ``stderr``.
    """
    # What stands there may by now be anything that the handler could make: never follow a link or wait for a fifo.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.open(folder / name, flags)
    except OSError:
        return ""
    try:
        told = os.fstat(file)
        if not stat.S_ISREG(told.st_mode):
            return ""
        return os.pread(file, _TAIL, max(0, told.st_size - _TAIL)).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(file)
