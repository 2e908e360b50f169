"""Where a handler's files go, under one set of rules for whatever they come from."""

from __future__ import annotations

import errno
import os
import tarfile
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from olcore.errors import HandlerInvalidError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_DEPTH = 64
"""Folders inside folders; far from Python's own recursion limit and from PATH_MAX."""

_CHUNK = 1 << 18
_UNNAMEABLE = frozenset((errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How big a handler may be."""

    max_mb: int
    """MiB of file contents together."""
    max_files: int
    """Files, links and folders together."""


class Sink(ABC):
    """Where a handler's files go; refuses what no handler may have."""

    def __init__(self, what: str, bounds: Bounds) -> None:
        self._what = what
        self._bounds = bounds
        self._bytes_left = bounds.max_mb << 20
        self._folders = {""}
        self._others: set[str] = set()
        self._regular: set[str] = set()

    def refusal(self, name: str, fault: str) -> HandlerInvalidError:
        """Make the error that says what is wrong with the member *name*."""
        # A tar may hold names that are not UTF-8; an error body may not.
        member = name.encode(errors="backslashreplace").decode()
        return HandlerInvalidError(f"{self._what}: {name!r} {fault}", details={"member": member})

    def folder(self, name: str) -> None:
        """Make a folder, and those above it."""
        self._need_folder(self._clean(name), name)

    def file(self, name: str, contents: IO[bytes], size: int, *, executable: bool) -> None:
        """Make a file of *size* bytes."""
        path = self._new(name)
        self._bytes_left -= size
        if self._bytes_left < 0:
            limit = f"the handler is bigger than {self._bounds.max_mb} MiB"
            raise self.refusal(name, f"is too much: {limit} (max_bundle_mb)")
        with self._nameable(name):
            self._write(path, contents, size, 0o755 if executable else 0o644)
        self._regular.add(path)

    def link(self, name: str, to: str) -> None:
        """Make a symbolic link; where it leads need not exist."""
        path = self._new(name)
        parts = [part for part in to.split("/") if part not in {"", "."}]
        down = next((at for at, part in enumerate(parts) if part != ".."), len(parts))
        if not to or to.startswith("/") or down > path.count("/") or ".." in parts[down:]:
            raise self.refusal(name, f"is a link that can lead out of the handler: {to!r}")
        with self._nameable(name):
            # Written anew, because os.path.realpath takes the "//a" in "a//a" for an absolute path.
            self._write_link(path, "/".join(parts) or ".")

    def same(self, name: str, other: str) -> None:
        """Make a hard link to a regular file that has been made."""
        path, first = self._new(name), self._clean(other)
        # Regular only: a hard link to a link would carry its way up to another depth.
        if first not in self._regular:
            raise self.refusal(name, f"is a hard link to no file of the handler: {other!r}")
        with self._nameable(name):
            self._write_same(path, first)
        self._regular.add(path)

    def _clean(self, name: str) -> str:
        parts = [part for part in name.split("/") if part not in {"", "."}]
        if name.startswith("/"):
            raise self.refusal(name, "is an absolute path")
        if ".." in parts:
            raise self.refusal(name, "leads out of the handler")
        if len(parts) > MAX_DEPTH:
            raise self.refusal(name, f"is in more than {MAX_DEPTH} folders")
        return "/".join(parts)

    def _new(self, name: str) -> str:
        path = self._clean(name)
        self._need_folder(path.rpartition("/")[0], name)
        self._count(path, name)
        self._others.add(path)
        return path

    def _need_folder(self, path: str, name: str) -> None:
        if path in self._folders:
            return
        self._need_folder(path.rpartition("/")[0], name)
        self._count(path, name)
        with self._nameable(name):
            self._make_folder(path)
        self._folders.add(path)

    def _count(self, path: str, name: str) -> None:
        if len(self._folders) + len(self._others) > self._bounds.max_files:
            limit = f"the handler has more than {self._bounds.max_files} files"
            raise self.refusal(name, f"is one too many: {limit} (max_bundle_files)")
        if path in self._folders or path in self._others:
            raise self.refusal(name, "is there twice")

    @contextmanager
    def _nameable(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileExistsError as error:
            raise self.refusal(name, "is there twice, or lies below a link or a file") from error
        except NotADirectoryError as error:
            raise self.refusal(name, "lies below a link or a file") from error
        except OSError as error:
            if error.errno in _UNNAMEABLE:
                raise self.refusal(name, f"cannot be stored: {error.strerror}") from error
            raise

    @abstractmethod
    def _make_folder(self, path: str) -> None: ...

    @abstractmethod
    def _write(self, path: str, contents: IO[bytes], size: int, mode: int) -> None: ...

    @abstractmethod
    def _write_link(self, path: str, to: str) -> None: ...

    @abstractmethod
    def _write_same(self, path: str, first: str) -> None: ...


class FolderSink(Sink):
    """Makes the files in an empty folder that only we can write to."""

    def __init__(self, target: Path, what: str, bounds: Bounds) -> None:
        super().__init__(what, bounds)
        self._target = target

    def _make_folder(self, path: str) -> None:
        (self._target / path).mkdir()
        (self._target / path).chmod(0o755)

    def _write(self, path: str, contents: IO[bytes], size: int, mode: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self._target / path, flags, mode), "wb") as out:
            os.fchmod(
                out.fileno(), mode
            )  # whatever the umask is, the guest's uid must be able to read
            while size > 0 and (chunk := contents.read(min(size, _CHUNK))):
                size -= len(chunk)
                out.write(chunk)

    def _write_link(self, path: str, to: str) -> None:
        (self._target / path).symlink_to(to)

    def _write_same(self, path: str, first: str) -> None:
        os.link(self._target / first, self._target / path, follow_symlinks=False)


class TarSink(Sink):
    """Makes members of an archive, without times and owners."""

    def __init__(self, archive: tarfile.TarFile, what: str, bounds: Bounds) -> None:
        super().__init__(what, bounds)
        self._archive = archive

    def _make_folder(self, path: str) -> None:
        self._add(path, tarfile.DIRTYPE, 0o755)

    def _write(self, path: str, contents: IO[bytes], size: int, mode: int) -> None:
        member = self._member(path, tarfile.REGTYPE, mode)
        member.size = size
        self._archive.addfile(member, contents)

    def _write_link(self, path: str, to: str) -> None:
        self._add(path, tarfile.SYMTYPE, 0o777, to)

    def _write_same(self, path: str, first: str) -> None:
        self._add(path, tarfile.LNKTYPE, 0o644, first)

    def _add(self, path: str, kind: bytes, mode: int, to: str = "") -> None:
        member = self._member(path, kind, mode)
        member.linkname = to
        self._archive.addfile(member)

    @staticmethod
    def _member(path: str, kind: bytes, mode: int) -> tarfile.TarInfo:
        member = tarfile.TarInfo(path)
        member.type, member.mode = kind, mode
        return member
