"""Knows a worker's process again: by its pid, its start time and the boot that both belong to.

A pid alone says nothing: after a crash or a reboot it may be another program's. Start time (field 22 of proc(5)'s
stat, in clock ticks since boot) and the boot's id together with the pid name one process for ever.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from olcore.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """One process, living or dead."""

    pid: int
    start_ticks: int
    boot_id: str
    session: int
    """Its session; equal to ``pid`` for a worker in the background, whose whole session is then ours."""


class _Stat(msgspec.Struct, frozen=True):
    pid: int
    state: str
    parent: int
    session: int
    start_ticks: int


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the program's name in parentheses, and may hold blanks and parentheses itself.
    fields = text[text.rindex(")") + 2 :].split()
    return _Stat(pid, fields[0], int(fields[1]), int(fields[3]), int(fields[19]))


def _all() -> Iterator[_Stat]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and (stat := _stat(int(folder.name))):
            yield stat


def identify(pid: int) -> Process | None:
    """Tell which process has *pid* now; ``None`` when no living one has."""
    stat = _stat(pid)
    # A zombie has ended, though nobody has asked how; in a container without an init it stays so.
    if stat is None or stat.state in "ZX":
        return None
    return Process(pid=pid, start_ticks=stat.start_ticks, boot_id=_boot_id(), session=stat.session)


def is_alive(process: Process) -> bool:
    """Say whether that very process lives."""
    now = identify(process.pid)
    return now is not None and (now.start_ticks, now.boot_id) == (
        process.start_ticks,
        process.boot_id,
    )


def read(path: Path) -> Process | None:
    """Read what ``write`` wrote; ``None`` when there is nothing of use."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Process)
    except (OSError, msgspec.MsgspecError):
        return None


def write(path: Path, process: Process) -> None:
    """Note *process* at *path*."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(msgspec.json.encode(process))
    temporary.replace(path)


def session_members(process: Process) -> list[Process]:
    """List who lives in the session that *process* made, itself left out; nobody when it made none."""
    now = identify(process.pid)
    if process.session != process.pid or process.boot_id != _boot_id():
        return []
    if now is not None and now.start_ticks != process.start_ticks:
        # The kernel gives a pid away only when no session has its number: this session is another program's.
        return []
    return [
        Process(
            pid=stat.pid,
            start_ticks=stat.start_ticks,
            boot_id=process.boot_id,
            session=stat.session,
        )
        for stat in _all()
        if stat.session == process.pid and stat.pid != process.pid and stat.state not in "ZX"
    ]


def descendants(process: Process) -> list[Process]:
    """List the living children of *process*, their children, and so on."""
    children: dict[int, list[_Stat]] = {}
    for stat in _all():
        children.setdefault(stat.parent, []).append(stat)
    found: list[Process] = []
    parents = [process.pid]
    while parents:
        for stat in children.get(parents.pop(), ()):
            parents.append(stat.pid)
            found.append(
                Process(
                    pid=stat.pid,
                    start_ticks=stat.start_ticks,
                    boot_id=process.boot_id,
                    session=stat.session,
                )
            )
    return found


def stop(
    processes: Iterable[Process],
    signal_number: signal.Signals,
    timeout_s: float,
) -> list[Process]:
    """Signal *processes*, wait until they have ended, and return those that have not within *timeout_s*."""
    with ExitStack() as undo:
        running: dict[int, Process] = {}
        for process in processes:
            fd = _open(process)
            if fd is None:
                continue
            undo.callback(os.close, fd)
            running[fd] = process
            _send(fd, process, signal_number)
        return _wait(running, timeout_s)


def wait(process: Process, timeout_s: float) -> bool:
    """Wait until *process* has ended; says whether it has."""
    fd = _open(process)
    if fd is None:
        return True
    try:
        return not _wait({fd: process}, timeout_s)
    finally:
        os.close(fd)


def _open(process: Process) -> int | None:
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # Asked after the descriptor was taken: from here on it cannot come to mean another process.
    if not is_alive(process):
        os.close(fd)
        return None
    return fd


def _send(fd: int, process: Process, signal_number: signal.Signals) -> None:
    try:
        signal.pidfd_send_signal(fd, signal_number)
    except ProcessLookupError:
        pass  # it ended meanwhile, which is what we want
    except PermissionError as error:
        raise ClusterError(
            f"may not send {signal_number.name} to process {process.pid}",
            hint="use the account that started the worker",
        ) from error


def _wait(running: dict[int, Process], timeout_s: float) -> list[Process]:
    poll = select.poll()
    for fd in running:
        poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + timeout_s
    while running and (left := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            poll.unregister(fd)
            del running[fd]
    return list(running.values())


def kill_tree(process: Process) -> list[Process]:
    """End *process*, its descendants and its session with SIGKILL; return those that still live after 5 s."""
    # Listed before the first dies: an orphan's parent is init, and nothing would lead to it.
    tree = {each.pid: each for each in (*descendants(process), *session_members(process))}
    return stop([process, *tree.values()], signal.SIGKILL, 5.0)


def stop_worker_processes(
    workers: Sequence[Process], timeout_s: float, on_forced: Callable[[Process], None]
) -> list[Process]:
    """Let workers drain, then see to it that nothing of them is left.

    Args:
        workers: Their arbiters, living or dead.
        timeout_s: How long they may drain, all at once.
        on_forced: Told of each that did not end by itself.

    Returns:
        Processes that even SIGKILL has not ended (they hang in the kernel).
    """
    slow = stop(workers, signal.SIGTERM, timeout_s)
    left: list[Process] = []
    for process in slow:
        on_forced(process)
        left += kill_tree(process)
    for process in workers:
        # The arbiter may have been killed alone; its server then ends by itself within a moment.
        orphans = session_members(process)
        with suppress(ClusterError):
            orphans = stop(orphans, signal.SIGTERM, 2.0) if orphans else []
        if orphans:
            left += stop(orphans, signal.SIGKILL, 5.0)
    return left
