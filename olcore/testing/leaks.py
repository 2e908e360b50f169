"""Tells what a test left on the machine: processes, mounts, cgroups, interfaces, nftables tables, files.

Only what can be ours is looked at: processes below this one or with one of the given folders on their command line,
and things whose names begin with ``ol``. The kernel removes some of them a moment after their owner (a veth pair after
its namespace's last process), so ``assert_no_leaks`` gives it a deadline.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path

DEADLINE_S = 10.0
_PREFIX = "ol"
_NAMED = re.compile(rf"(^|/){_PREFIX}")
_FILES = ("/tmp", "/run", "/dev/shm")  # noqa: S108 - looked at, never written
_NETLINK_NETFILTER = 12
_NFTABLES_GETTABLE = 10 << 8 | 1
_NFTABLES_TABLE_NAME = 1
_REQUEST_DUMP = 0x301
_DONE = 3
_ERROR = 2


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there was of ours at one moment, each thing as a line for people."""

    processes: frozenset[str]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    interfaces: frozenset[str]
    nftables: frozenset[str]
    files: frozenset[str]


def snapshot(folders: Sequence[Path] = ()) -> Snapshot:
    """Look at the machine.

    Args:
        folders: Folders of the test's own; a process with one on its command line and a mount in one count as ours.
    """
    return Snapshot(
        processes=frozenset(_processes(folders)),
        mounts=frozenset(_mounts(folders)),
        cgroups=frozenset(_cgroups()),
        interfaces=frozenset(name for _, name in socket.if_nameindex() if name.startswith(_PREFIX)),
        nftables=frozenset(name for name in _tables() if name.startswith(_PREFIX)),
        files=frozenset(_files()),
    )


def difference(before: Snapshot, after: Snapshot) -> list[str]:
    """Name each thing that *after* has and *before* had not."""
    return [
        f"{field.name}: {thing}"
        for field in fields(Snapshot)
        for thing in sorted(getattr(after, field.name) - getattr(before, field.name))
    ]


@contextmanager
def assert_no_leaks(
    *folders: Path, deadline_s: float = DEADLINE_S, except_in: Path | None = None
) -> Iterator[None]:
    """Fail when the body leaves something behind that is not gone within *deadline_s*.

    Args:
        *folders: As for ``snapshot``.
        deadline_s: How long the kernel may take.
        except_in: What names this folder is another fixture's, which outlives the body.
    """
    before = snapshot(folders)
    yield
    until = time.monotonic() + deadline_s
    while left := [
        line
        for line in difference(before, snapshot(folders))
        if except_in is None or str(except_in) not in line
    ]:
        assert time.monotonic() < until, "left behind:\n  " + "\n  ".join(left)
        # No event tells of all six kinds; a leak is rare and a test that has one may take its time.
        time.sleep(0.05)


def _processes(folders: Sequence[Path]) -> Iterator[str]:
    parents: dict[int, int] = {}
    lines: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):  # it ended meanwhile
            # The second field is the program's name in parentheses, which may hold anything.
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            if status[0] == "X":
                continue
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            pid = int(entry.name)
            parents[pid] = int(status[1])
            lines[pid] = f"{pid} (started at {status[19]}, {status[0]}) {command or '[no command]'}"
    for pid, line in lines.items():
        if pid != os.getpid() and (
            _is_below(pid, os.getpid(), parents) or any(str(folder) in line for folder in folders)
        ):
            yield line


def _is_below(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == root:
            return True
    return False


def _mounts(folders: Sequence[Path]) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        target = line.split()[4].encode().decode("unicode_escape")
        if _NAMED.search(target) or any(Path(target).is_relative_to(folder) for folder in folders):
            yield target


def _cgroups() -> Iterator[str]:
    for folder, below, _ in os.walk("/sys/fs/cgroup"):
        for name in below:
            path = f"{folder}/{name}"
            if _NAMED.search(path):
                yield path


def _files() -> Iterator[str]:
    for folder in _FILES:
        with suppress(FileNotFoundError):
            for path in Path(folder).iterdir():
                if path.name.startswith(_PREFIX):
                    yield str(path)


def _tables() -> Iterator[str]:
    """Ask the kernel for the names of its nftables tables; without the nft program, which may be missing."""
    try:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    except OSError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            return  # a kernel without netfilter has no tables
        raise
    with netlink:
        netlink.bind((0, 0))
        request = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
        netlink.send(
            struct.pack("=IHHII", 16 + len(request), _NFTABLES_GETTABLE, _REQUEST_DUMP, 1, 0)
            + request
        )
        while True:
            data = netlink.recv(1 << 16)
            while data:
                size, kind = struct.unpack_from("=IH", data)
                if kind in {
                    _DONE,
                    _ERROR,
                }:  # an error means no nftables in this kernel, or no right to look
                    return
                yield from _names(data[20:size])
                data = data[_aligned(size) :]


def _names(attributes: bytes) -> Iterator[str]:
    while attributes:
        size, kind = struct.unpack_from("=HH", attributes)
        if kind == _NFTABLES_TABLE_NAME:
            yield attributes[4:size].rstrip(b"\0").decode()
        attributes = attributes[_aligned(size) :]


def _aligned(size: int) -> int:
    return (size + 3) & ~3
