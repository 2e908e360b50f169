"""Says which version a handler's folder or bundle has, from what the file system knows about it without reading it."""

from __future__ import annotations

import os
import stat
import time
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from olcore.bundles import MAX_DEPTH

if TYPE_CHECKING:
    from collections.abc import Iterator

# The same as bundles leave out: running a handler by hand must not change its version.
_SKIPPED = "__pycache__"
# A file server's clock may be ahead of ours; what seems to come from further ahead will never be old enough.
_MAX_SKEW_S = 2.0
_TRIES = 20

Signature = tuple[int, int, int, int]
"""Size, mtime in ns, inode and mode; changes when the content does, unless somebody takes pains."""


class Walk(msgspec.Struct, frozen=True, gc=False):
    """What one look at a handler found."""

    version: str
    changed_s: float
    """When anything of it was last touched (ctime, which ``cp -p`` and ``tar`` cannot set), in seconds since 1970."""
    seen: tuple[tuple[str, Signature], ...]
    """Every path with its signature, the handler's own first, folders included."""

    @property
    def path(self) -> str:
        """The folder or bundle that was looked at."""
        return self.seen[0][0]

    def is_current(self) -> bool:
        """Whether a new walk would find the same; one stat for each path, about a microsecond.

        That no name was added is told by the folders' mtimes.
        """
        try:
            top, signature = self.seen[0]
            if _signature(os.stat(top)) != signature:  # noqa: PTH116  # for every request
                return False
            for path, known in islice(self.seen, 1, None):
                if _signature(os.lstat(path)) != known:
                    return False
        except OSError:
            return False
        return True

    def is_torn(self, earlier: Walk | None) -> bool:
        """Whether a file has another size than in *earlier* and the same mtime: it is being truncated right now.

        ext4 sets the size first and the times when the truncation has gone through its journal, milliseconds later;
        until then the file looks as if it had been empty for long. (Found by a test that overwrote files in place.)
        """
        if earlier is None:
            return False
        before = dict(earlier.seen)
        return any(
            known[0] != now[0] and known[1:] == now[1:]
            for path, now in self.seen
            if (known := before.get(path)) is not None
        )

    def unsettled_s(self, settle_s: float) -> float:
        """How long to wait until the handler has been left alone for *settle_s*; 0 when it has."""
        age = time.time() - self.changed_s
        return settle_s - age if -_MAX_SKEW_S < age < settle_s else 0.0


def walk(path: str, at_most: int | None = None) -> Walk | None:
    """Look at the folder or bundle at *path*, a link to one included.

    Args:
        path: Absolute.
        at_most: Give up with ``None`` at more files.

    Raises:
        OSError: It is not there, or cannot be looked at.
    """
    top = os.stat(path)  # noqa: PTH116  # a Path costs more than the call
    seen: list[tuple[str, Signature]] = [(path, _signature(top))]
    identity: list[tuple[str, Signature]] = []
    changed = top.st_ctime_ns
    if stat.S_ISREG(top.st_mode):
        identity.append(("", _signature(top)))
    else:
        for entry, found in _below(path):
            seen.append((entry.path, _signature(found)))
            changed = max(changed, found.st_ctime_ns)
            if stat.S_ISDIR(found.st_mode):
                # A folder's mtime changes when an editor puts its temporary file beside the code and takes it away.
                identity.append((entry.path[len(path) :], (0, 0, 0, found.st_mode)))
            else:
                identity.append((entry.path[len(path) :], _signature(found)))
            if at_most is not None and len(seen) > at_most:
                return None
    digest = blake2b(repr(sorted(identity)).encode(errors="surrogateescape"), digest_size=16)
    return Walk(digest.hexdigest(), changed / 1e9, tuple(seen))


def settled_walk(path: str, settle_s: float, earlier: Walk | None = None) -> Walk:
    """Walk until the handler has been left alone for *settle_s*; blocks.

    A copy in progress is not taken for the code. What is written to all the time is taken as it is after a while.

    Args:
        path: Absolute.
        settle_s: How long it must have been left alone.
        earlier: What an earlier walk found, if there was one.

    Raises:
        OSError: It is not there, or cannot be looked at.
    """
    tries = 0
    while True:
        found = walk(path)
        assert found is not None  # noqa: S101  # without at_most it never gives up
        wait_s = settle_s if found.is_torn(earlier) else found.unsettled_s(settle_s)
        tries += 1
        if not wait_s or tries == _TRIES:
            return found
        time.sleep(wait_s)


def _below(folder: str, depth: int = 0) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            found = entry.stat(follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                yield entry, found
            elif entry.name != _SKIPPED:
                yield entry, found
                # What is deeper makes the handler invalid, which pulling it will say.
                if depth < MAX_DEPTH:
                    yield from _below(entry.path, depth + 1)


def _signature(found: os.stat_result) -> Signature:
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_mode
