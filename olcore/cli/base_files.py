"""Unpacks a root file system into a cluster's ``base`` folder, so that all of it is root's and nothing in it gives rights.

The work is tar's. An archive may come from anywhere, and GNU tar follows no link that the archive itself has made, and
refuses names that lead out. Owners are not kept: a sandbox maps uids that an image may have used for its files.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING

from olcore.errors import ClusterError
from olcore.interfaces import BaseArchive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_CHUNK = 1 << 20
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
"""The programs that tar starts. It finds out by itself only for a file that it opens, and then nobody knows how far it is."""
_MACHINE_S = ("dev", "proc", "sys")
"""Every backend mounts its own there; in a folder that is a live root they are the host's."""
_EXCLUDED = [f"--exclude={prefix}{name}/*" for name in _MACHINE_S for prefix in ("", "./", "/")]
_OTHERS_WRITE_OR_SETUID = stat.S_IWOTH | stat.S_ISUID | stat.S_ISGID


@contextmanager
def file_archive(path: Path) -> Iterator[BaseArchive]:
    """Read a tar archive, compressed or not."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise ClusterError(f"cannot read {str(path)!r}: {error.strerror}") from error
    with file:
        yield BaseArchive(chunks=_chunks(file), size_bytes=os.fstat(file.fileno()).st_size)


@contextmanager
def folder_archive(folder: Path) -> Iterator[BaseArchive]:
    """Pack a folder on the fly; what is mounted in it is left out."""
    command = ["tar", "--create", "--one-file-system", "--anchored", *_EXCLUDED, f"--directory={folder}", "."]  # fmt: skip
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said) as packer,
    ):
        yield BaseArchive(chunks=_packed(packer, folder, said), size_bytes=_size_of(folder))


def unpack(archive: BaseArchive, target: Path, report: Callable[[int], None]) -> None:
    """Unpack *archive* into the empty folder *target*.

    Args:
        archive: May be compressed, too.
        target: Is left half full on failure.
        report: Called with the number of bytes that were read.

    Raises:
        ClusterError: It is no tar archive, or cannot be written; says what tar says.
    """
    chunks = iter(archive.chunks)
    first = next(chunks, b"")
    programs = [name for magic, name in _COMPRESSIONS.items() if first.startswith(magic)]
    for name in programs:
        if shutil.which(name) is None:
            raise ClusterError(
                f"the archive is compressed by {name}, and there is no such program here",
                hint=f"install {'xz-utils' if name == 'xz' else name}",
            )
    command = [
        *("tar", "--extract", "--preserve-permissions", "--no-same-owner", "--anchored"),
        *(*_EXCLUDED, f"--directory={target}", *(f"--{name}" for name in programs)),
    ]
    with (
        tempfile.TemporaryFile() as said,
        # The umask, for folders that the archive does not name: whoever runs this, sandboxes must get through.
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said, umask=0o022) as tar,
    ):
        # tar, when it stops reading, says itself why.
        with suppress(BrokenPipeError), _stdin_of(tar) as pipe:
            for chunk in chain([first], chunks):
                pipe.write(chunk)
                report(len(chunk))
        if tar.wait() != 0:
            raise ClusterError(f"cannot unpack the base: {_reason(tar, said)}")
    _settle(target)


def _settle(root: Path) -> None:
    """Take away what a base must not have: setuid, files that anybody may write to, devices, pipes and sockets."""
    root.chmod(0o755)
    for folder, below, files in os.walk(root):
        for name in (*below, *files):
            path = Path(folder) / name
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                continue
            if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                path.unlink()
            elif mode & _OTHERS_WRITE_OR_SETUID:
                path.chmod(stat.S_IMODE(mode) & ~_OTHERS_WRITE_OR_SETUID)
    tmp = root / "tmp"
    if tmp.is_dir() and not tmp.is_symlink():
        # Every backend mounts its own there, and runc gives that the mode of what it lies on.
        tmp.chmod(0o1777)


def _packed(packer: subprocess.Popen[bytes], folder: Path, said: IO[bytes]) -> Iterator[bytes]:
    assert packer.stdout is not None  # noqa: S101 - it is a pipe
    yield from _chunks(packer.stdout)
    # 1: a file changed while it was read; the folder may be a system that runs.
    if packer.wait() not in {0, 1}:
        raise ClusterError(f"cannot read {str(folder)!r}: {_reason(packer, said)}")


def _stdin_of(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None  # noqa: S101 - it is a pipe
    return process.stdin


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
        yield chunk


def _size_of(folder: Path) -> int:
    paths: Iterable[Path] = (Path(at) / name for at, _, names in os.walk(folder) for name in names)
    total = 0
    for path in paths:
        with suppress(OSError):  # gone meanwhile
            total += path.lstat().st_size
    return total


def _reason(tar: subprocess.Popen[bytes], said: IO[bytes]) -> str:
    said.seek(0)
    lines = said.read().decode(errors="replace").splitlines()
    # What comes after the first fault follows from it.
    told = [line for line in lines if line and "Removing leading" not in line]
    return (told or [f"tar ended with status {tar.returncode}"])[0].removeprefix("tar: ")
