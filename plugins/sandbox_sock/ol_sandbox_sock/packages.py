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

from ol_sandbox_sock import linux, mounts
from ol_sandbox_sock.cells import CellSource, pid_of
from ol_sandbox_sock.links import Link
from ol_sandbox_sock.zygote import ZygoteLink
from olcore.errors import SandboxError
from olcore.interfaces import ImportRecord, Limits, Network, Zygote, ZygoteSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from ol_sandbox_sock.cgroups import WorkerCgroups

_log = logging.getLogger(__name__)
_IMPORT_TIMEOUT_S = 120.0
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
            link, theirs = Link.pair()
            undo.callback(link.close)
            packet = {"fork": "zygote", "uids": [uids.base - self._parent.uids.base, size]}
            ended = await self._parent.zygote.fork(name, packet, theirs, cgroup.entry_fds())
            undo.push_async_callback(_ended, ended)
            first, own = await _expect(link, "prepared", spec)
            undo.callback(os.close, first)
            undo.callback(_kill, first)
            try:
                if cgroup.enters_by_attach:
                    await asyncio.to_thread(cgroup.attach, pid_of(own))
            finally:
                os.close(own)
            await self._import(link, spec)
            zygote = ZygoteLink(link)
            await zygote.ready()
            undo.callback(zygote.close)
            self.source = make_source(zygote, uids)
            undo.push_async_callback(self.source.close)
            await self.source.fill(Network.NONE)
            self._undo = undo.pop_all()

    async def _import(self, link: Link, spec: ZygoteSpec) -> None:
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
        imported: list[ImportRecord] = []
        missed: set[str] = set()
        while True:
            packet = await _receive(link, spec)
            for module, file, self_us, self_kb in packet.get("imported", ()):
                imported.append(
                    ImportRecord(module=module, file=file, self_us=self_us, self_kb=self_kb)
                )
            missed.update(packet.get("missed", ()))
            if "done" in packet:
                break
        if packet["threads"]:
            raise SandboxError(
                f"zygote {spec.id}: its imports start {packet['threads']}, which no fork survives"
            )
        self.imported, self.missed, self.memory_bytes = (
            imported,
            frozenset(missed),
            packet["private_kb"] * 1024,
        )


async def _receive(link: Link, spec: ZygoteSpec) -> dict[str, Any]:
    try:
        async with asyncio.timeout(_IMPORT_TIMEOUT_S):
            packet, fds = await link.receive()
    except TimeoutError:
        raise SandboxError(
            f"zygote {spec.id}: its imports took over {_IMPORT_TIMEOUT_S:g} s"
        ) from None
    if packet is None:
        raise SandboxError(f"zygote {spec.id} could not be made: {_last_line(spec)}")
    packet["fds"] = fds
    return packet


async def _expect(link: Link, key: str, spec: ZygoteSpec) -> list[int]:
    packet = await _receive(link, spec)
    if key not in packet:
        raise SandboxError(f"zygote {spec.id} said {packet!r} instead of {key!r}")
    fds: list[int] = packet["fds"]
    return fds


def _last_line(spec: ZygoteSpec) -> str:
    with contextlib.suppress(OSError):
        lines = (spec.folder / "stderr").read_text(errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
    return "it ended without a word"


def _kill(pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        linux.pidfd_send_signal(pidfd, signal.SIGKILL)


async def _ended(ended: asyncio.Future[Any]) -> None:
    await ended
