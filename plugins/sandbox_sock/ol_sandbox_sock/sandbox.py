"""One sandbox: a cell with a handler in it, seen from the worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from ol_sandbox_sock import linux
from olcore.errors import SandboxDeadError, SandboxError
from olcore.interfaces import Death, DeathCause, Limits, Sandbox, Usage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ol_sandbox_sock.cgroups import Cgroup
    from ol_sandbox_sock.links import Link

_log = logging.getLogger(__name__)
_FREEZE_DEADLINE_S = 5.0
_PF_EXITING = 0x4
"""Of the flags in /proc/<pid>/stat (linux/sched.h): set before a process that ends closes its first file."""
_END_DEADLINE_S = 10.0
_EMPTY_DEADLINE_S = 5.0


def pid_of(pidfd: int) -> int:
    """Say which process *pidfd* refers to."""
    # proc_pid_fdinfo(5): the pid as this process's namespace numbers it.
    with open(f"/proc/self/fdinfo/{pidfd}") as file:  # noqa: PTH123 -- read once per cell
        for line in file:
            if line.startswith("Pid:"):
                return int(line.split()[1])
    raise ProcessLookupError(f"descriptor {pidfd} is no pidfd")


class Cell:
    """A fork of a zygote and what it holds on the host; a stem cell until ``SockSandbox`` takes it.

    Args:
        name: Unique for its zygote.
        uid: Its host uid.
        link: The connection over which it waits for a handler.
        pidfd: Its process 1.
        cgroup: Its control group.
        ended: The zygote's word on how it ended.
        give_back: Frees what it held outside of its namespaces; called once, when it is dead.
    """

    def __init__(  # noqa: PLR0913 -- a record with behaviour, all by keyword
        self,
        *,
        name: str,
        uid: int,
        link: Link,
        pidfd: int,
        cgroup: Cgroup,
        ended: asyncio.Future[Death],
        give_back: Callable[[], Awaitable[None]],
    ) -> None:
        self.name = name
        self.uid = uid
        self.link = link
        self.cgroup = cgroup
        self.ended = ended
        self._pidfd = pidfd
        self._give_back = give_back
        self._destroying: asyncio.Task[None] | None = None

    @property
    def is_dead(self) -> bool:
        """Whether it has ended."""
        return self.ended.done()

    def is_ending(self) -> bool:
        """Whether process 1 is on its way out already, or gone; its parent need not have said so yet."""
        if self.is_dead or self._destroying is not None:
            return True
        try:
            fields = Path(f"/proc/{pid_of(self._pidfd)}/stat").read_text().rpartition(")")[2]
        except OSError:
            return True
        state, *numbers = fields.split()
        return state in "ZX" or bool(int(numbers[5]) & _PF_EXITING)

    async def destroy(self) -> None:
        """Kill it and free what it held; any number of callers, none of whom is cancelled half way."""
        if self._destroying is None:
            self._destroying = asyncio.create_task(self._destroy())
        await asyncio.shield(self._destroying)

    async def _destroy(self) -> None:
        # Process 1 of a pid namespace takes every process in it along (pid_namespaces(7)), a frozen one too on v2.
        with contextlib.suppress(ProcessLookupError):
            linux.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        await asyncio.wait({self.ended}, timeout=_END_DEADLINE_S)
        if not self.ended.done():
            # A package zygote's word, which strangers' code may keep from us.
            self.ended.set_result(
                Death(cause=DeathCause.LOST, detail="its zygote does not say how it ended")
            )
        self.link.close()
        os.close(self._pidfd)
        try:
            await self._remove_cgroup()
        except OSError as error:
            _log.warning("cgroup of sandbox %s: %s", self.name, error)
        await self._give_back()

    async def _remove_cgroup(self) -> None:
        try:
            await self.cgroup.remove(_EMPTY_DEADLINE_S)
        except TimeoutError:
            # Its process 1 was not the one that we were told, or did not really end: again such a zygote's doing.
            await asyncio.to_thread(self.cgroup.kill)
            await self.cgroup.remove()


class SockSandbox(Sandbox):
    """A cell that serves a handler."""

    def __init__(self, identity: str, cell: Cell, limits: Limits) -> None:
        self.id = identity
        self._cell = cell
        self._limits = limits
        self._is_destroyed = False
        self._is_paused = False
        self._death = asyncio.get_running_loop().create_future()
        cell.ended.add_done_callback(self._ended)

    def _ended(self, ended: asyncio.Future[Death]) -> None:
        if not self._death.done():  # done when the loop that waits was cancelled
            self._death.set_result(self._explain(ended.result()))

    def _explain(self, death: Death) -> Death:
        if death.cause is not DeathCause.SIGNALED or death.signal != "SIGKILL":
            return death
        # Before anything is counted: a child of a handler may have been out of memory long ago, and the handler went on.
        if self._is_destroyed:
            return Death(cause=DeathCause.DESTROYED)
        with contextlib.suppress(OSError, ValueError):
            if self._cell.cgroup.oom_kills():
                detail = f"over its limit of {self._limits.memory_mb} MiB"
                return Death(cause=DeathCause.OUT_OF_MEMORY, signal=death.signal, detail=detail)
        return death

    async def wait(self) -> Death:
        death: Death = await asyncio.shield(self._death)
        return death

    def _require_life(self) -> None:
        if self._cell.is_dead:
            # As it was found then, when its cgroup could still be asked.
            known = self._death.done()
            death = self._death.result() if known else self._explain(self._cell.ended.result())
            raise SandboxDeadError(f"sandbox {self.id} is dead: {death}")

    async def pause(self) -> None:
        self._require_life()
        if self._is_paused:
            return
        try:
            await self._cell.cgroup.freeze(_FREEZE_DEADLINE_S)
        except FileNotFoundError:  # destroyed meanwhile, its cgroup too
            self._require_life()
            raise
        except OSError as error:
            raise SandboxError(f"sandbox {self.id} cannot be paused: {error}") from error
        self._is_paused = True
        self._require_life()

    async def resume(self) -> None:
        self._require_life()
        if self._is_paused:
            self._cell.cgroup.thaw()
            self._is_paused = False

    async def usage(self) -> Usage:
        self._require_life()
        return self._cell.cgroup.usage()

    async def destroy(self) -> None:
        if not self._is_destroyed:
            self._is_destroyed = not self._cell.is_ending()
        await self._cell.destroy()
