"""The files of control groups: what to write for limits and what to read, in version 1 and in version 2.

See cgroup-v2.rst, cgroup-v1/memory.rst, cgroup-v1/pids.rst and scheduler/sched-bwc.rst of the kernel's documentation.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from olcore.interfaces import Limits, Usage

CONTROLLERS = ("memory", "cpu", "pids")
_MIB = 1024 * 1024
_PERIOD_US = 100_000


Folders = Mapping[str, Path]
"""Controller -> the group's folder in its hierarchy."""


@dataclass(frozen=True, slots=True)
class Write:
    """One value to write into one file of a group."""

    controller: str
    file: str
    value: str
    is_optional: bool = False
    """Whether the file may be missing: swap accounting can be compiled out or turned off."""

    def describe(self) -> str:
        """Say it as a shell would."""
        return f"{self.controller}: {self.file} = {self.value}"


class Writer(Protocol):
    """The differences between the two versions."""

    entry: str | None
    """The file through which a process moves itself in, if the version has a quick one."""

    def limits(self, limits: Limits, before: Limits | None) -> Sequence[Write]: ...
    def oom_kills(self, folders: Folders) -> int: ...
    def usage(self, folders: Folders) -> Usage: ...


class V1:
    """Version 1: a hierarchy for each controller."""

    entry: str | None = "tasks"

    def limits(self, limits: Limits, before: Limits | None) -> Sequence[Write]:
        size = str(limits.memory_mb * _MIB)
        # memory.rst: memory+swap may never be below memory, not even between two writes. With both the same, nothing
        # of it is swapped out to where the limit does not count it.
        memory = [
            Write("memory", "memory.limit_in_bytes", size),
            Write("memory", "memory.memsw.limit_in_bytes", size, is_optional=True),
        ]
        if before is not None and limits.memory_mb > before.memory_mb:
            memory.reverse()
        return (
            *memory,
            # What TCP buffers is not in the others, and no handler may take the machine's (net.ipv4.tcp_mem).
            Write("memory", "memory.kmem.tcp.limit_in_bytes", size, is_optional=True),
            Write("cpu", "cpu.cfs_period_us", str(_PERIOD_US)),
            Write("cpu", "cpu.cfs_quota_us", str(limits.cpu_percent * _PERIOD_US // 100)),
            Write("pids", "pids.max", str(limits.max_processes)),
        )

    def oom_kills(self, folders: Folders) -> int:
        return _flat(folders["memory"] / "memory.oom_control").get("oom_kill", 0)

    def usage(self, folders: Folders) -> Usage:
        memory = folders["memory"]
        cache = _flat(memory / "memory.stat").get("total_inactive_file", 0)
        return Usage(
            memory_bytes=max(0, _number(memory / "memory.usage_in_bytes") - cache),
            cpu_s=_number(folders["cpuacct"] / "cpuacct.usage") / 1e9,
            processes=_number(folders["pids"] / "pids.current"),
        )


class V2:
    """Version 2: one hierarchy with all controllers."""

    entry: str | None = None

    def limits(self, limits: Limits, before: Limits | None) -> Sequence[Write]:  # noqa: ARG002 -- any order will do
        return (
            Write("memory", "memory.max", str(limits.memory_mb * _MIB)),
            Write("memory", "memory.swap.max", "0", is_optional=True),
            Write("cpu", "cpu.max", f"{limits.cpu_percent * _PERIOD_US // 100} {_PERIOD_US}"),
            Write("pids", "pids.max", str(limits.max_processes)),
        )

    def oom_kills(self, folders: Folders) -> int:
        return _flat(folders["memory"] / "memory.events").get("oom_kill", 0)

    def usage(self, folders: Folders) -> Usage:
        path = folders["memory"]
        cache = _flat(path / "memory.stat").get("inactive_file", 0)
        return Usage(
            memory_bytes=max(0, _number(path / "memory.current") - cache),
            cpu_s=_flat(path / "cpu.stat")["usage_usec"] / 1e6,
            processes=_number(path / "pids.current"),
        )


def mounted(text: str) -> tuple[dict[str, Path], Path | None]:
    """Find, in the text of /proc/mounts, each v1 controller's mount point and v2's."""
    v1: dict[str, Path] = {}
    unified: Path | None = None
    for line in text.splitlines():
        _, target, fstype, options, *_ = line.split()
        if fstype == "cgroup2":
            unified = unified or Path(target)
        elif fstype == "cgroup":
            for option in options.split(","):
                if option in {*CONTROLLERS, "cpuacct"}:
                    v1.setdefault(option, Path(target))
    return v1, unified


def write(file: Path, value: str) -> None:
    """Write, and name file and value when the kernel refuses."""
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, f"writing {value!r}: {error.strerror}", str(file)) from None
    finally:
        os.close(fd)


def _number(file: Path) -> int:
    return int(file.read_text())


def _flat(file: Path) -> dict[str, int]:
    """Read a file of ``key value`` lines."""
    pairs = (line.split() for line in file.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs}


def pids(folder: Path) -> list[int]:
    """List the processes inside."""
    try:
        text = (folder / "cgroup.procs").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    except OSError as error:
        if error.errno == errno.ENODEV:  # removed between opening and reading
            return []
        raise
    return [
        int(pid) for pid in text.split() if pid != "0"
    ]  # 0 is one outside of the reader's pid namespace
