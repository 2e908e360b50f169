"""The contract of a source of base file systems: what ``olcore new --base SCHEME:NAME`` dumps into ``base``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseArchive:
    """A root file system on its way."""

    chunks: Iterable[bytes]
    """A tar archive without compression, in parts of any size. Read once; may raise OlcoreError when its origin fails."""
    size_bytes: int | None = None
    """About how big it is, for a progress bar; ``None`` when nobody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseSource:
    """The description of a source; ``open`` imports the heavy part late."""

    scheme: str
    """What stands before the colon in ``--base``; unique, ``[a-z][a-z0-9_-]*``."""
    summary: str
    """One line, such as ``an image of this machine's engine``."""
    open: Callable[[str], AbstractContextManager[BaseArchive]]
    """Called with what stands behind the colon. Raises OlcoreError when there is no such thing; leaving the context undoes
    what was made for it, however far the archive was read."""
