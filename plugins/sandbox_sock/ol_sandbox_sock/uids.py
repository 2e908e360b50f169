"""Host uids for sandboxes: one range for each worker, one uid for each live instance.

The kernel counts many things per uid (pipes, inotify instances, keys, processes): instances that shared one would share
these budgets, and one could take them all. So each live instance has a host uid of its own. Workers of one machine must
not meet either, and a worker that dies must give its range back: a range is claimed (claims.py).

Where the ranges lie: useradd gives out subordinate uids up to 600,100,000 (SUB_UID_MAX), systemd-nspawn takes 0x00080000
to 0x6FFFFFFF, systemd's "foreign" uids begin at 0x7FFE0000, and some programs take uids from 0x80000000 on for negative
(systemd's UIDS-GIDS.md). So ours begin at 0x70000000, or above what /etc/subuid and /etc/subgid give to somebody there.
"""

from __future__ import annotations

import contextlib
from collections import deque
from pathlib import Path

from ol_sandbox_sock import claims
from olcore.errors import BackendUnusableError, SandboxUnavailableError

SIZE = 65536
"""Uids in a worker's range; every range begins at a multiple of it, so that two either are the same or do not meet."""
DEFAULT_BASE = 0x70000000
END = 0x7FFE0000
LOCKS = Path("/run/olcore/uids")


def default_base(files: tuple[Path, ...] = (Path("/etc/subuid"), Path("/etc/subgid"))) -> int:
    """Return the first uid that is above all that is given out; where nothing reads as a range, nothing is."""
    base = DEFAULT_BASE
    for file in files:
        text = file.read_text(errors="replace") if file.exists() else ""
        for line in text.splitlines():
            fields = line.split(":")
            with contextlib.suppress(ValueError, IndexError):
                base = max(base, int(fields[1]) + int(fields[2]))
    return -(-base // SIZE) * SIZE


class _Uids:
    """A range with uids to take from its low end and slices from its high end; uid ``base`` itself is never given."""

    def __init__(self, base: int, size: int) -> None:
        self.base = base
        self.size = size
        self._low = base + 1
        self._high = base + size
        self._free: deque[int] = deque()
        self._slices: dict[int, list[int]] = {}

    def take(self) -> int:
        """Take a uid that nobody else has.

        Raises:
            SandboxUnavailableError: All are taken.
        """
        # A fresh one as long as there is one, then the one that has been free for longest: what a dead instance may
        # have left under its uid is far away in time.
        if self._low < self._high:
            self._low += 1
            return self._low - 1
        if self._free:
            return self._free.popleft()
        raise SandboxUnavailableError(
            f"all {self.size} host uids from {self.base} on are taken", retry_after_s=1
        )

    def give_back(self, uid: int) -> None:
        """Give back a uid whose every process is gone."""
        self._free.append(uid)

    def slice(self, size: int) -> Slice:
        """Take *size* uids in a row for a zygote's user namespace; close the slice to give them back.

        Raises:
            SandboxUnavailableError: There are not so many left.
        """
        starts = self._slices.setdefault(size, [])
        if starts:
            return Slice(self, starts.pop(), size)
        if self._high - size < self._low:
            raise SandboxUnavailableError(
                f"no {size} host uids in a row are left of {self.size} from {self.base} on",
                retry_after_s=1,
            )
        self._high -= size
        return Slice(self, self._high, size)

    def _slice_closed(self, slice_: Slice) -> None:
        self._slices[slice_.size].append(slice_.base)


class Slice(_Uids):
    """A part of a range, which can be sliced further; ``close`` is idempotent."""

    def __init__(self, parent: _Uids, base: int, size: int) -> None:
        super().__init__(base, size)
        self._parent: _Uids | None = parent

    def close(self) -> None:
        """Give it back; its every process is gone."""
        parent, self._parent = self._parent, None
        if parent is not None:
            parent._slice_closed(self)  # noqa: SLF001 -- one idea in two classes


class UidRange(_Uids):
    """The range of one worker, its own from the making to the closing, or to the process's death.

    Args:
        base: Where to begin looking for a free range; 0 means ``default_base``.
        locks: The folder of the lock files, which all workers of the machine share.

    Raises:
        BackendUnusableError: No range is free, or the lock files cannot be made.
    """

    def __init__(self, base: int = 0, locks: Path = LOCKS) -> None:
        start = -(-(base or default_base()) // SIZE) * SIZE
        end = END if start < END else 0xFFFE0000
        try:
            claim = claims.claim(locks, map(str, range(start, end, SIZE)))
        except OSError as error:
            raise BackendUnusableError(
                f"the uid lock files cannot be made: {error}", hint="run as root"
            ) from error
        if claim is None:
            raise BackendUnusableError(
                f"no range of {SIZE} host uids is free from {start} on", hint="set sock.uid_base"
            )
        self._claim = claim
        super().__init__(int(claim.name), SIZE)

    def close(self) -> None:
        """Give the range back; idempotent."""
        self._claim.close()


def clean(locks: Path = LOCKS) -> list[str]:
    """Remove the lock files of dead workers; one line for each."""
    return [f"uid range {name}" for name in claims.clean(locks)]
