"""Looks at processes through /proc, as the host sees them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def status_of(pid: int | str) -> list[str]:
    """Read /proc/<pid>/stat: the state first, then the parent; the fields 1 and 2 of its man page are left out.

    Raises:
        OSError: There is no such process.
    """
    # The second field is the program's name in parentheses, which may hold spaces and parentheses itself.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def live() -> dict[int, list[str]]:
    """Every process that is not merely waiting to be collected, with its ``status_of``."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it ended between the listing and here
                fields = status_of(entry.name)
                if fields[0] not in "ZX":
                    found[int(entry.name)] = fields
    return found


def descendants(root: int) -> set[int]:
    """Every live process below *root*."""
    children: dict[int, list[int]] = {}
    for pid, fields in live().items():
        children.setdefault(int(fields[1]), []).append(pid)
    found: set[int] = set()
    ahead = [root]
    while ahead:
        below = children.get(ahead.pop(), [])
        found.update(below)
        ahead.extend(below)
    return found


def is_running(pid: int) -> bool:
    """Whether the process exists and is not merely waiting to be collected."""
    try:
        return status_of(pid)[0] not in "ZX"
    except OSError:
        return False
