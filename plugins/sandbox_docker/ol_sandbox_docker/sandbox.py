"""One container as a sandbox."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from ol_sandbox_docker.engine import Engine
from olcore.errors import SandboxDeadError, SandboxError
from olcore.interfaces import Death, DeathCause, Limits, Sandbox, Usage

Parameters = ParamSpec("Parameters")
Argument = TypeVar("Argument")
Result = TypeVar("Result")

_SIGNALED = 128
"""The engine adds the signal's number to it; an exit code over it reads the same."""


class Threads:
    """Where blocking calls of the engine run: threads of our own, so that a slow engine starves nobody else's."""

    def __init__(self, count: int) -> None:
        self._executor = ThreadPoolExecutor(count, thread_name_prefix="ol-docker")

    async def run(
        self,
        call: Callable[Parameters, Result],
        *arguments: Parameters.args,
        **named: Parameters.kwargs,
    ) -> Result:
        """Run *call* in a thread, and wait for its result."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: call(*arguments, **named))

    def start(self, call: Callable[[Argument], object], argument: Argument) -> None:
        """Run *call* in a thread, and wait for nothing."""
        self._executor.submit(call, argument)

    def close(self) -> None:
        """Let the threads end."""
        self._executor.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Parts:
    """What every sandbox of one pool shares."""

    engine: Engine
    threads: Threads
    release: Callable[[str], None]
    """Called in a thread with the id of a container that is dead, to undo what was mounted for it."""
    forget: Callable[[DockerSandbox, bool], None]
    """Called when a sandbox is gone; says whether its container is removed too."""


class DockerSandbox(Sandbox):
    """A container that runs.

    Its first process is held by a pidfd, which tells of its death at once and without the engine.
    """

    def __init__(
        self, sandbox_id: str, container: str, pidfd: int, limits: Limits, parts: Parts
    ) -> None:
        self.id = sandbox_id
        self.container = container
        self._pidfd = pidfd
        self._limits = limits
        self._engine = parts.engine
        self._threads = parts.threads
        self._release = parts.release
        self._forget = parts.forget
        self._paused = False
        self._removal: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._death: asyncio.Future[Death] = self._loop.create_future()
        self._loop.add_reader(pidfd, self._ended)

    async def wait(self) -> Death:
        return await asyncio.shield(self._death)

    async def pause(self) -> None:
        self._check_alive()
        if not self._paused:
            await self._ask(self._engine.pause)
            self._paused = True

    async def resume(self) -> None:
        self._check_alive()
        if self._paused:
            await self._ask(self._engine.unpause)
            self._paused = False

    async def usage(self) -> Usage:
        self._check_alive()
        return usage_of(await self._ask(self._engine.stats))

    async def destroy(self) -> None:
        # One task whoever asks, which goes on when who asked is cancelled.
        if self._removal is None:
            self._removal = self._loop.create_task(self._remove())
        await asyncio.shield(self._removal)

    async def _remove(self) -> None:
        try:
            await self._threads.run(self._engine.remove, self.container)
            gone = True
        except SandboxError:
            # The engine is away: the processes die nevertheless, and the container is removed when it is back.
            gone = False
            if not self._death.done():
                with suppress(OSError):  # it has just ended
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        await self.wait()
        await self._threads.run(self._release, self.container)
        self._forget(self, gone)

    async def _ask(self, call: Callable[[str], Result]) -> Result:
        try:
            return await self._threads.run(call, self.container)
        except SandboxError:
            # It may have died meanwhile, which says more than the engine's refusal.
            self._check_alive()
            raise

    def _check_alive(self) -> None:
        if self._death.done():
            raise SandboxDeadError(f"sandbox {self.id!r} is dead: {self._death.result()}")
        if self._is_destroyed():
            raise SandboxDeadError(f"sandbox {self.id!r} is dead: destroyed")

    def _is_destroyed(self) -> bool:
        return self._removal is not None

    def _ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._autopsy = self._loop.create_task(self._tell())

    async def _tell(self) -> None:
        death = Death(cause=DeathCause.DESTROYED)
        if not self._is_destroyed():
            found = await self._threads.run(self._how_it_died)
            # Destroyed meanwhile, it is gone from the engine too, which says nothing about its end.
            if found.cause is not DeathCause.LOST or not self._is_destroyed():
                death = found
        os.close(self._pidfd)
        self._death.set_result(death)

    def _how_it_died(self) -> Death:
        try:
            code = self._engine.wait(self.container)
            state = self._engine.inspect(self.container)["State"]
        except SandboxError as error:
            return Death(cause=DeathCause.LOST, detail=str(error))
        return death_of(code, out_of_memory=bool(state.get("OOMKilled")), limits=self._limits)


def death_of(code: int, *, out_of_memory: bool, limits: Limits) -> Death:
    """Say how a container ended, from the engine's status.

    Args:
        code: Its exit status, 128 more than a signal's number for who was killed.
        out_of_memory: Whether the kernel killed any process of it for that.
        limits: What it was allowed.
    """
    try:
        name = signal.Signals(code - _SIGNALED).name
    except ValueError:
        return Death(cause=DeathCause.EXITED, exit_code=code)
    if out_of_memory and name == "SIGKILL":
        return Death(
            cause=DeathCause.OUT_OF_MEMORY,
            signal=name,
            detail=f"over its limit of {limits.memory_mb} MiB",
        )
    return Death(cause=DeathCause.SIGNALED, signal=name)


def usage_of(stats: dict[str, Any]) -> Usage:
    """Read the engine's measurements of one container."""
    memory = stats.get("memory_stats") or {}
    return Usage(
        memory_bytes=int(memory.get("usage", 0)),
        cpu_s=stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9,
        processes=int((stats.get("pids_stats") or {}).get("current", 0)),
    )
