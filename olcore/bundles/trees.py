"""Reads a handler's folder: packs it into a bundle, or copies it."""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import tarfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from olcore.bundles.sinks import Bounds, FolderSink, Sink, TarSink
from olcore.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SKIPPED = "__pycache__"


def pack(folder: Path, bundle: Path, bounds: Bounds) -> None:
    """Write *folder* to a new bundle; the same contents give the same bytes.

    Times, owners and ``__pycache__`` are left out, and so are setuid bits.

    Raises:
        HandlerInvalidError: It holds something that a bundle cannot, or too much.
        RegistryError: It cannot be read, or the bundle not be written.
    """
    what = f"{str(folder)!r}"
    with (
        explained(what),
        bundle.open("xb") as out,
        gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        _walk(folder, TarSink(archive, what, bounds))


def copy(folder: Path, target: Path, bounds: Bounds) -> None:
    """Copy *folder* into the empty folder *target*, under the same rules as a bundle; setuid bits are dropped.

    Raises:
        HandlerInvalidError: It holds something that a handler cannot, or too much; *target* is empty again.
        RegistryError: It cannot be read, or *target* not be written; *target* is empty again.
    """
    what = f"{str(folder)!r}"
    with emptied_on_failure(target), explained(what):
        _walk(folder, FolderSink(target, what, bounds))


def _walk(folder: Path, sink: Sink) -> None:
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _walk_opened(top, "", sink)
    finally:
        os.close(top)


def _walk_opened(folder: int, prefix: str, sink: Sink) -> None:
    # Through descriptors, because the folder may be somebody's who puts a link where a file was when we looked.
    for name in sorted(os.listdir(folder)):
        path = prefix + name
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            sink.link(path, os.readlink(name, dir_fd=folder))
        elif stat.S_ISDIR(mode):
            if name != _SKIPPED:
                sink.folder(path)
                _walk_below(folder, name, path, sink)
        elif stat.S_ISREG(mode):
            _read_file(folder, name, path, sink)
        else:
            raise sink.refusal(path, "is neither a file nor a folder nor a link")


def _walk_below(folder: int, name: str, path: str, sink: Sink) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    below = os.open(name, flags, dir_fd=folder)
    try:
        _walk_opened(below, f"{path}/", sink)
    finally:
        os.close(below)


def _read_file(folder: int, name: str, path: str, sink: Sink) -> None:
    # O_NONBLOCK, because a pipe that took the file's place would make us wait for a writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, dir_fd=folder), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise sink.refusal(path, "is not the file that it was")
        sink.file(path, file, found.st_size, executable=bool(found.st_mode & 0o111))


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn the operating system's errors into one that names *what*."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename!r})" if error.filename else ""
        raise RegistryError(
            f"cannot read or store {what}: {error.strerror or error}{where}"
        ) from error


@contextmanager
def emptied_on_failure(target: Path) -> Iterator[None]:
    """Leave nothing in *target* when the block fails, however it does."""
    try:
        yield
    except BaseException:
        empty(target)
        raise


def empty(folder: Path) -> None:
    """Remove everything in *folder*, following no link."""
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            Path(entry.path).unlink()
