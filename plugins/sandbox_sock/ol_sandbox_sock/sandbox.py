"""One sandbox: a cell with a handler in it, seen from the worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
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

    async def destroy(self) -> None:
        """Kill it and free what it held; any number of callers, none of whom is cancelled half way."""
        if self._destroying is None:
            self._destroying = asyncio.create_task(self._destroy())
        await asyncio.shield(self._destroying)

    async def _destroy(self) -> None:
        # Process 1 of a pid namespace takes every process in it along (pid_namespaces(7)), a frozen one too on v2.
        with contextlib.suppress(ProcessLookupError):
            linux.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        await self.ended
        self.link.close()
        os.close(self._pidfd)
        try:
            await self.cgroup.remove()
        except OSError as error:
            _log.warning("cgroup of sandbox %s: %s", self.name, error)
        await self._give_back()


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
        with contextlib.suppress(OSError, ValueError):
            if self._cell.cgroup.oom_kills():
                detail = f"over its limit of {self._limits.memory_mb} MiB"
                return Death(cause=DeathCause.OUT_OF_MEMORY, signal=death.signal, detail=detail)
        return Death(cause=DeathCause.DESTROYED) if self._is_destroyed else death

    async def wait(self) -> Death:
        death: Death = await asyncio.shield(self._death)
        return death

    def _require_life(self) -> None:
        if self._cell.is_dead:
            raise SandboxDeadError(
                f"sandbox {self.id} is dead: {self._explain(self._cell.ended.result())}"
            )

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
        self._is_destroyed = True
        await self._cell.destroy()
