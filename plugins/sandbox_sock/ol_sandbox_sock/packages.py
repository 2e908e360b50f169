"""Package zygotes, as the worker sees them: made from another zygote, forked like it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import msgspec

from ol_sandbox_sock import linux, mounts
from ol_sandbox_sock.links import Link
from ol_sandbox_sock.sandbox import pid_of
from ol_sandbox_sock.zygote import ZygoteLink
from olcore.errors import SandboxError
from olcore.interfaces import ImportRecord, Limits, Network, Zygote, ZygoteSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from ol_sandbox_sock.cells import CellSource
    from ol_sandbox_sock.cgroups import Cgroup, WorkerCgroups

_log = logging.getLogger(__name__)
_PREPARE_TIMEOUT_S = 20.0
_IMPORT_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 10.0
_MOST_MODULES = 50_000
_HANDLES = 2
_SHARE = 16
"""A zygote's slice is this part of its parent's uids: 4,096 of 65,536, then 256, then 16."""
_SMALLEST = 16

_numbers = itertools.count(1)


class SockZygote(Zygote):
    """A zygote that has imported modules; see guest/packages.py for its processes."""

    def __init__(self, identity: str, parent: CellSource) -> None:
        self.id = identity
        self.imported = []
        self.missed = frozenset()
        self.memory_bytes = 0
        self.source: CellSource
        self.children: set[SockZygote] = set()
        self._parent = parent
        self._undo = AsyncExitStack()
        self._destroying: asyncio.Task[None] | None = None

    @property
    def descendants(self) -> int:
        return self.source.in_use + sum(1 + child.descendants for child in self.children)

    @property
    def alive(self) -> bool:
        return self._destroying is None and not self.source.zygote.lost.is_set()

    async def destroy(self) -> None:
        if self._destroying is None:
            self._destroying = asyncio.create_task(self._destroy())
        await asyncio.shield(self._destroying)

    async def _destroy(self) -> None:
        await asyncio.gather(*(child.destroy() for child in list(self.children)))
        await self.source.close()
        await self._undo.aclose()

    async def start(
        self,
        spec: ZygoteSpec,
        cgroups: WorkerCgroups,
        limits: Limits,
        make_source: Callable[[ZygoteLink, Any], CellSource],
    ) -> None:
        """Fork it, let it import, and see that it can be forked.

        Raises:
            SandboxError: Something of this failed; nothing of it is left.
        """
        async with AsyncExitStack() as undo:
            size = self._parent.uids.size // _SHARE
            if size < _SMALLEST:
                raise SandboxError(f"zygote {spec.id}: its parent has too few uids to share")
            uids = self._parent.uids.slice(size)
            undo.callback(uids.close)
            name = f"z{next(_numbers)}"
            cgroup = cgroups.make(name, limits)
            undo.push_async_callback(cgroup.remove)
            mounts.bound_output(spec.folder)
            undo.callback(mounts.unmount, spec.folder)
            link, theirs = Link.pair()
            undo.callback(link.close)
            packet = {"fork": "zygote", "uids": [uids.base - self._parent.uids.base, size]}
            ended = await self._parent.zygote.fork(name, packet, theirs, cgroup.entry_fds())
            undo.push_async_callback(_gone, ended, cgroup)
            first, own = await _prepared(link, spec)
            undo.callback(os.close, first)
            undo.callback(_kill, first)
            try:
                if cgroup.enters_by_attach:
                    await asyncio.to_thread(cgroup.attach, pid_of(own))
            finally:
                os.close(own)
            await self._import(link, spec, cgroup, limits.memory_mb)
            zygote = ZygoteLink(link)
            await zygote.ready()
            undo.callback(zygote.close)
            self.source = make_source(zygote, uids)
            undo.push_async_callback(self.source.close)
            await self.source.fill(Network.NONE)
            self._undo = undo.pop_all()

    async def _import(self, link: Link, spec: ZygoteSpec, cgroup: Cgroup, memory_mb: int) -> None:
        try:
            async with asyncio.timeout(_IMPORT_TIMEOUT_S):
                await self._order(link, spec)
                await self._learn(link, spec)
        except TimeoutError:
            raise SandboxError(
                f"zygote {spec.id}: its imports took over {_IMPORT_TIMEOUT_S:g} s"
            ) from None
        except SandboxError as error:
            if not cgroup.oom_kills():
                raise
            raise SandboxError(
                f"zygote {spec.id}: its imports are over its limit of {memory_mb} MiB",
                hint="raise sock.zygote_memory_mb",
            ) from error

    async def _order(self, link: Link, spec: ZygoteSpec) -> None:
        order = {
            "sys_path": list(spec.sys_path),
            "imports": list(spec.imports),
            "environment": spec.environment,
        }
        fds: list[int] = []
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fds.extend(os.open(spec.folder / name, flags, 0o644) for name in ("stdout", "stderr"))
            if spec.code is not None:
                fds.append(mounts.detached(spec.code, writable=False))
            await link.send(order, fds)
        finally:
            for fd in fds:
                os.close(fd)

    async def _learn(self, link: Link, spec: ZygoteSpec) -> None:
        imported: list[ImportRecord] = []
        missed: set[str] = set()
        while True:
            said = await _heard(link, spec)
            imported += (
                ImportRecord(module=module, file=file, self_us=self_us, self_kb=self_kb)
                for module, file, self_us, self_kb in said.imported
            )
            missed.update(said.missed)
            if len(imported) + len(missed) > _MOST_MODULES:
                raise SandboxError(f"zygote {spec.id}: it imports over {_MOST_MODULES} modules")
            if said.done:
                break
        if said.threads:
            raise SandboxError(
                f"zygote {spec.id}: its imports start {said.threads}, which no fork survives"
            )
        self.imported, self.missed, self.memory_bytes = (
            imported,
            frozenset(missed),
            said.private_kb * 1024,
        )


class _Said(msgspec.Struct):
    """What a zygote says of its imports. Strangers' code runs there and may say anything, so it is looked at closely."""

    imported: list[tuple[str, str | None, int, int]] = []
    missed: list[str] = []
    done: bool = False
    threads: str = ""
    private_kb: int = 0


async def _heard(link: Link, spec: ZygoteSpec) -> _Said:
    packet, _ = await link.receive()
    if packet is None:
        raise SandboxError(f"zygote {spec.id} could not be made: {_last_line(spec)}")
    try:
        return msgspec.convert(packet, _Said)
    except msgspec.ValidationError as error:
        raise SandboxError(f"zygote {spec.id} says what makes no sense: {error}") from error


async def _prepared(link: Link, spec: ZygoteSpec) -> tuple[int, int]:
    """Wait for its process 1 and itself, as pidfds."""
    try:
        async with asyncio.timeout(_PREPARE_TIMEOUT_S):
            packet, fds = await link.receive(_HANDLES)
    except TimeoutError:
        raise SandboxError(
            f"zygote {spec.id} was not ready within {_PREPARE_TIMEOUT_S:g} s"
        ) from None
    if len(fds) == _HANDLES:
        return fds[0], fds[1]
    for fd in fds:
        os.close(fd)
    said = _last_line(spec) if packet is None else "it did not say which its processes are"
    raise SandboxError(f"zygote {spec.id} could not be made: {said}")


def _last_line(spec: ZygoteSpec) -> str:
    with contextlib.suppress(OSError):
        lines = (spec.folder / "stderr").read_text(errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
        if not os.statvfs(spec.folder).f_bavail:
            return f"it printed over {mounts.OUTPUT_MB} MiB"
    return "it ended without a word"


def _kill(pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        linux.pidfd_send_signal(pidfd, signal.SIGKILL)


async def _gone(ended: asyncio.Future[Any], cgroup: Cgroup) -> None:
    """Wait for its parent's word that it ended; a parent with strangers' code in it may keep that to itself."""
    await asyncio.wait({ended}, timeout=_END_TIMEOUT_S)
    if not ended.done():
        await asyncio.to_thread(cgroup.kill)
