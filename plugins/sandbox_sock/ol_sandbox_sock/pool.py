"""The pool: one worker's zygotes, cells, cgroups and uids, put together and taken apart."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import olcore.guest
from ol_sandbox_sock import cgroups, host, mounts, root, seccomp, uids
from ol_sandbox_sock.cells import CellSource
from ol_sandbox_sock.launch import Launch
from ol_sandbox_sock.packages import SockZygote
from ol_sandbox_sock.sandbox import SockSandbox
from ol_sandbox_sock.uids import UidRange
from olcore.errors import SandboxError, SandboxUnavailableError
from olcore.interfaces import (
    GuestInfo,
    Limits,
    Network,
    Sandbox,
    SandboxSpec,
    WorkerContext,
    Zygote,
    ZygotePool,
    ZygoteSpec,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ol_sandbox_sock.cells import NetworkProvider
    from ol_sandbox_sock.sandbox import Cell
    from ol_sandbox_sock.settings import SockSettings
    from ol_sandbox_sock.uids import Slice
    from ol_sandbox_sock.zygote import ZygoteLink

_log = logging.getLogger(__name__)


def label_of(context: WorkerContext) -> str:
    """Name what a worker makes outside of its folder: unique for cluster and worker, ``[a-z0-9-]``."""
    digest = hashlib.sha256(context.cluster_name.encode()).hexdigest()[:8]
    return f"{digest}-{re.sub('[^a-z0-9-]', '-', context.worker_name.lower())}"


def clean(context: WorkerContext, _settings: SockSettings) -> Sequence[str]:
    """Remove what a dead worker left; see ``SandboxBackend.clean``."""
    # Imported here, because `olcore plugins` must not pay for netlink.
    from ol_sandbox_sock.network import Nat

    label = label_of(context)
    removed = [*cgroups.clean(label), *Nat.clean(label), *uids.clean()]
    for folder in ("sock", "handlers", "import-cache"):
        removed += mounts.clear(context.worker_dir / folder)
    return removed


class SockPool(ZygotePool):
    """Sandboxes by forking; see launcher.py for the walls and guest/cell.py for what stands inside them."""

    def __init__(self, context: WorkerContext, settings: SockSettings) -> None:
        self._context = context
        self._settings = settings
        self._folder = context.worker_dir / "sock"
        self._undo = AsyncExitStack()
        self._sources: dict[bool, CellSource] = {}
        self._starting = asyncio.Lock()
        self._connecting = asyncio.Lock()
        self._launches: list[Launch] = []
        self._zygotes: set[SockZygote] = set()
        self._live: set[SockSandbox] = set()
        self._networks: dict[Network, NetworkProvider] = {}
        self._info: GuestInfo | None = None
        self._is_closed = False

    async def start(self) -> None:
        async with AsyncExitStack() as undo:
            self._folder.mkdir(parents=True, exist_ok=True)
            undo.callback(mounts.clear, self._folder)
            self._cgroups = cgroups.find().worker(label_of(self._context))
            undo.callback(self._cgroups.close)
            self._uids = UidRange(self._settings.uid_base)
            undo.callback(self._uids.close)
            if self._settings.seccomp == "on":
                filters = self._folder / "seccomp"
                filters.mkdir()
                (filters / "cell.bpf").write_bytes(seccomp.compile_filter())
                (filters / "zygote.bpf").write_bytes(seccomp.compile_filter(for_zygote=True))
            else:
                _log.warning(
                    "sock.seccomp is off: handlers may make every system call; for research only"
                )
            if self._context.network is Network.NAT:
                await self._connect(undo)
            source = await self._source(network=self._context.network is not Network.HOST)
            await source.fill(self._context.network)
            self._undo = undo.pop_all()

    async def _connect(self, undo: AsyncExitStack) -> None:
        """Set up the network ``nat``, once."""
        async with self._connecting:
            if Network.NAT in self._networks:
                return
            # Imported here, because a worker whose handlers stay offline must not pay for netlink.
            from ol_sandbox_sock.nat import NatThread

            nat = NatThread()
            undo.push_async_callback(nat.close)
            servers = host.nameservers(self._settings.nameservers)
            await nat.start(label_of(self._context), self._settings.nat_pool, servers)
            self._networks[Network.NAT] = nat

    async def _source(self, *, network: bool) -> CellSource:
        """Return the source of cells in a network namespace of their own, or in the host's; start it when needed."""
        async with self._starting:
            source = self._sources.get(network)
            if source is not None and not source.zygote.lost.is_set():
                return source
            if source is not None:
                _log.warning("the zygote ended; starting another")
                await source.close()
            launch = self._launch(network=network)
            zygote, self._info = await launch.start()
            source = self._make_source(zygote, self._uids)
            self._sources[network] = source
            self._launches.append(launch)
            return source

    def _make_source(self, zygote: ZygoteLink, uids: UidRange | Slice) -> CellSource:
        return CellSource(
            zygote=zygote,
            cgroups=self._cgroups,
            uids=uids,
            limits=self._context.limits,
            networks=self._networks,
            stem_cells=self._settings.stem_cells,
        )

    async def create_zygote(self, spec: ZygoteSpec, parent: Zygote | None) -> Zygote:
        if parent is not None and not isinstance(parent, SockZygote):
            raise TypeError(f"{parent!r} is no zygote of this pool")
        origin = await self._source(network=True) if parent is None else parent.source
        zygote = SockZygote(spec.id, origin)
        limits = msgspec.structs.replace(
            self._context.limits, memory_mb=self._settings.zygote_memory_mb
        )
        try:
            await zygote.start(spec, self._cgroups, limits, self._make_source)
        except OSError as error:
            raise SandboxError(f"zygote {spec.id} could not be made: {error}") from error
        siblings = self._zygotes if parent is None else parent.children
        siblings.add(zygote)
        zygote.source.zygote.on_lost(lambda: siblings.discard(zygote))
        return zygote

    def _launch(self, *, network: bool) -> Launch:
        name = "zygote" if network else "zygote-host"
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        base = self._context.base_dir
        base_path = str(base.resolve()) if base.is_dir() and any(base.iterdir()) else ""
        filters = self._folder / "seccomp"
        layout = root.Layout(
            base=base_path,
            interpreter=host.interpreter(base_path, self._settings.interpreter),
            guest=str(Path(olcore.guest.__file__).parent),
            sock=str(Path(__file__).parent),
            packages=str(self._context.packages_dir.resolve()),
            nameservers=host.nameservers(self._settings.nameservers),
            filters=str(filters) if filters.exists() else "",
        )
        steps = root.plan(layout)
        for step in steps:
            _log.debug("root: %s", step.describe())
        return Launch(
            steps=steps,
            executable=layout.interpreter.executable,
            folder=folder,
            log=self._folder / f"{name}.log",
            uids=(self._uids.base, self._uids.size),
            network=network,
        )

    async def close(self) -> None:
        self._is_closed = True
        await asyncio.gather(*(sandbox.destroy() for sandbox in list(self._live)))
        await asyncio.gather(*(zygote.destroy() for zygote in list(self._zygotes)))
        for source in self._sources.values():
            await source.close()
        for launch in self._launches:
            await launch.close()
        self._launches.clear()
        self._sources.clear()
        await self._undo.aclose()

    async def make_scratch(self, folder: Path, limits: Limits) -> None:
        try:
            mounts.make_scratch(folder, limits.scratch_mb)
        except OSError as error:
            raise SandboxError(f"the scratch folder cannot be made: {error}") from error

    async def remove_scratch(self, folder: Path) -> None:
        try:
            mounts.remove_scratch(folder)
        except OSError as error:
            _log.warning("scratch folder: %s", error)

    async def create(self, spec: SandboxSpec) -> Sandbox:
        if self._is_closed:
            raise SandboxUnavailableError("the pool is closed")
        if spec.network is Network.NAT and Network.NAT not in self._networks:
            await self._connect(self._undo)
        source = await self._origin(spec)
        cell = await self._serving(spec, source)
        sandbox = SockSandbox(spec.id, cell, spec.limits)
        self._live.add(sandbox)
        cell.ended.add_done_callback(lambda _: self._live.discard(sandbox))
        return sandbox

    async def _serving(self, spec: SandboxSpec, source: CellSource) -> Cell:
        """Take a cell and give it its handler."""
        stems_left = self._settings.stem_cells
        while True:
            cell = await source.take(spec.network)
            try:
                if spec.limits != source.limits:
                    cell.cgroup.set_limits(spec.limits)
                await _hand_over(cell, spec, source.limits, shown=self._context.packages_dir)
            except OSError as error:
                await cell.destroy()
                # A stem cell that was killed while it waited is no reason to fail.
                if not stems_left or not isinstance(error, ConnectionError):
                    raise SandboxError(f"the sandbox could not be made: {error}") from error
                stems_left -= 1
            else:
                return cell

    async def _origin(self, spec: SandboxSpec) -> CellSource:
        """Choose what to fork: the named zygote, else the root zygote; the one in the host's network has no others."""
        network = spec.network is not Network.HOST
        if isinstance(spec.zygote, SockZygote) and network:
            return spec.zygote.source
        source = self._sources.get(network)
        if source is None or source.zygote.lost.is_set():
            source = await self._source(network=network)
        return source

    async def probe(self) -> GuestInfo:
        if self._info is None:
            raise SandboxUnavailableError("the pool has not been started")
        return self._info


async def _hand_over(cell: Cell, spec: SandboxSpec, made_with: Limits, *, shown: Path) -> None:
    """Give a stem cell its handler: code, scratch and perhaps packages as detached mounts.

    Args:
        cell: Who is to serve it.
        spec: The handler.
        made_with: The limits that the cell has.
        shown: The packages that every cell sees; others are mounted over them.
    """
    order: dict[str, object] = {"serve": True}
    if spec.limits.tmp_mb != made_with.tmp_mb:
        order["tmp_mb"] = spec.limits.tmp_mb
    fds: list[int] = []
    try:
        fds.append(mounts.detached(spec.code, writable=False))
        fds.append(mounts.detached(spec.scratch, writable=True))
        if spec.packages is not None and spec.packages != shown:
            fds.append(mounts.detached(spec.packages, writable=False))
        await cell.link.send(order, fds)
    finally:
        for fd in fds:
            os.close(fd)
    cell.link.close()
