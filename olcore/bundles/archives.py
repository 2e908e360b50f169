"""Reads a bundle: unpacks a ``.tar.gz`` that a stranger may have made."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import zlib
from contextlib import closing
from typing import IO, TYPE_CHECKING, Any, TypeVar

from olcore.bundles.sinks import Bounds, FolderSink, Sink
from olcore.bundles.trees import emptied_on_failure, explained
from olcore.errors import HandlerInvalidError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

_AnyHeader = TypeVar("_AnyHeader", bound="tarfile.TarInfo")

_MAX_EXTENSION_BYTES = 1 << 20
_CHUNK = 1 << 18
_GZIP_MAGIC = b"\x1f\x8b"
_EXTENSIONS = frozenset(
    (
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    )
)
# What the standard library raises for a damaged archive, found by fuzzing besides what it documents.
_DAMAGE = (
    EOFError,
    zlib.error,
    tarfile.TarError,
    ArithmeticError,
    LookupError,
    RecursionError,
    ValueError,
    struct.error,
)


def unpack(bundle: Path, target: Path, bounds: Bounds, what: str | None = None) -> None:
    """Unpack *bundle* into the empty folder *target*.

    Args:
        bundle: The ``.tar.gz``.
        target: An empty folder that only we can write to.
        bounds: How much may come out.
        what: What to call the bundle in errors; its path unless given.

    Raises:
        HandlerInvalidError: It is damaged, unsafe or too big; *target* is empty again.
        RegistryError: It cannot be read, or *target* not be written; *target* is empty again.
    """
    what = what or f"{str(bundle)!r}"
    with emptied_on_failure(target), explained(what), bundle.open("rb") as file:
        _check_magic(file, what)
        with closing(gzip.GzipFile(fileobj=file)) as contents:
            stream = _Stream(contents, what, bounds)
            try:
                _unpack(stream, FolderSink(target, what, bounds))
            except _DAMAGE as error:
                raise HandlerInvalidError(f"{what} is damaged or truncated: {error}") from error
            except gzip.BadGzipFile as error:
                raise HandlerInvalidError(f"{what} is damaged: {error}") from error


def _check_magic(file: IO[bytes], what: str) -> None:
    magic = file.read(len(_GZIP_MAGIC))
    if magic != _GZIP_MAGIC:
        fault = "is not gzip" if magic else "is empty"
        raise HandlerInvalidError(
            f"{what} {fault}", hint="pack a handler with: tar -czf NAME.tar.gz -C FOLDER ."
        )
    file.seek(0)


def _unpack(stream: _Stream, sink: Sink) -> None:
    # "r|" reads strictly forward: a header that points back, which would loop for ever, is an error by itself.
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as archive:
        while (member := archive.next()) is not None:
            _put(archive, member, sink)
    stream.finish()


def _put(archive: tarfile.TarFile, member: tarfile.TarInfo, sink: Sink) -> None:
    if member.isdir():
        sink.folder(member.name)
    elif member.issym():
        sink.link(member.name, member.linkname)
    elif member.islnk():
        sink.same(member.name, member.linkname)
    elif member.isreg() and not member.issparse():
        if member.mode & (stat.S_ISUID | stat.S_ISGID):
            raise sink.refusal(member.name, "has a setuid or setgid bit")
        contents = archive.extractfile(member)
        if contents is None:
            raise sink.refusal(member.name, "has no contents")
        sink.file(member.name, contents, member.size, executable=bool(member.mode & 0o111))
    else:
        raise sink.refusal(member.name, f"is {_kind(member)}")


def _kind(member: tarfile.TarInfo) -> str:
    if member.issparse():
        return "a sparse file"
    if member.isfifo():
        return "a pipe"
    return "a device" if member.isdev() else f"of the unknown type {member.type!r}"


class _Header(tarfile.TarInfo):
    """A header whose own size is believed only within bounds: tarfile reads an extension header into memory whole."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> Self:
        return _checked(super().frombuf(buf, encoding or "utf-8", errors))

    # Pythons of 2025 and later read an archive through this one instead; a test holds whichever it is.
    @classmethod
    def _frombuf(cls, *arguments: Any, **more: Any) -> Self:  # noqa: ANN401 -- as theirs
        header: Self = super()._frombuf(*arguments, **more)  # type: ignore[misc]
        return _checked(header)


def _checked(header: _AnyHeader) -> _AnyHeader:
    if header.size < 0:
        raise tarfile.ReadError(f"{header.name!r} has a negative size")
    if header.type in _EXTENSIONS and header.size > _MAX_EXTENSION_BYTES:
        raise tarfile.ReadError(f"an extended header has {header.size} bytes")
    return header


class _Stream(io.RawIOBase):
    """The unpacked bytes of a bundle, counted; tarfile reads from it."""

    def __init__(self, contents: gzip.GzipFile, what: str, bounds: Bounds) -> None:
        super().__init__()
        self._contents = contents
        self._what = what
        self._bounds = bounds
        # A member costs a header, padding, and in the pax format two more of each.
        self._left = (bounds.max_mb + 1 << 20) + 4096 * bounds.max_files
        self._tail = b""

    def read(self, size: int = -1) -> bytes:
        data = self._contents.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise HandlerInvalidError(
                f"{self._what} unpacks to more than {self._bounds.max_mb} MiB"
            )
        self._tail = (self._tail + data)[-tarfile.BLOCKSIZE :]
        return data

    def finish(self) -> None:
        """Read to the end, because gzip's checksum stands there, and see that tar's own end mark was there too."""
        while self.read(_CHUNK):
            pass
        # tarfile takes a missing end mark for the end; an archive that was cut between two members looks whole to it.
        if self._tail.strip(b"\0"):
            raise tarfile.ReadError("no end mark")
