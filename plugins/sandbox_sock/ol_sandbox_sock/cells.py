"""Where cells come from: forks of one zygote, a few of them made ahead of need."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Protocol

from ol_sandbox_sock.links import Link
from ol_sandbox_sock.sandbox import Cell, pid_of
from olcore.errors import SandboxError, SandboxUnavailableError
from olcore.interfaces import Death, Limits, Network

if TYPE_CHECKING:
    from ol_sandbox_sock.cgroups import WorkerCgroups
    from ol_sandbox_sock.uids import Slice, UidRange
    from ol_sandbox_sock.zygote import ZygoteLink

_log = logging.getLogger(__name__)
_PREPARE_TIMEOUT_S = 20.0
_HANDLES = 2
"""That a cell sends: its network namespace and itself."""
_REFILL_DELAY_S = 0.02
"""A refill waits for this long, so that it does not compete with the cold start that caused it for the processor."""

_numbers = itertools.count(1)


class Connected(Protocol):
    """A cell's way to the network."""

    @property
    def address(self) -> str: ...
    @property
    def gateway(self) -> str: ...
    @property
    def gateway_hardware(self) -> str: ...
    @property
    def device(self) -> str: ...


class NetworkProvider(Protocol):
    """What connects a network namespace to the outside, off the event loop."""

    async def attach(self, number: int, netns_fd: int) -> Connected: ...

    async def detach(self, number: int) -> None: ...


class CellSource:
    """Makes cells of one zygote, and keeps stem cells.

    Args:
        zygote: What is forked.
        cgroups: Where a cell's limits are set.
        uids: Where its host uid comes from; the zygote's own range begins at ``uids.base``.
        limits: What stem cells are made with; a handler with other limits pays for the change.
        networks: Provider for each kind of network that needs one.
        stem_cells: How many to keep, for each kind of network that has been asked for.
    """

    def __init__(
        self,
        *,
        zygote: ZygoteLink,
        cgroups: WorkerCgroups,
        uids: UidRange | Slice,
        limits: Limits,
        networks: dict[Network, NetworkProvider],
        stem_cells: int,
    ) -> None:
        self.zygote = zygote
        self.limits = limits
        self._cgroups = cgroups
        self.uids = uids
        self._networks = networks
        self._want = stem_cells
        self._stems: dict[Network, list[Cell]] = {}
        self._refills: dict[Network, asyncio.Task[None]] = {}
        self._is_closed = False
        self.in_use = 0
        """Live cells that have been taken."""

    async def take(self, network: Network) -> Cell:
        """Take a stem cell, or make a cell when none waits; a new one is made for it, a little later.

        Raises:
            SandboxError: It cannot be made.
            SandboxUnavailableError: The zygote is gone.
        """
        cell = await self._take(network)
        self.in_use += 1
        cell.ended.add_done_callback(self._one_less)
        return cell

    def _one_less(self, _ended: asyncio.Future[Death]) -> None:
        self.in_use -= 1

    async def _take(self, network: Network) -> Cell:
        stems = self._stems.setdefault(network, [])
        while stems:
            cell = stems.pop()
            if not cell.is_dead:
                self._refill(network)
                return cell
            await cell.destroy()
        cell = await self._make(network)
        self._refill(network)
        return cell

    async def fill(self, network: Network) -> None:
        """Make the stem cells for *network* now."""
        stems = self._stems.setdefault(network, [])
        while len(stems) < self._want and not self._is_closed:
            stems.append(await self._make(network))

    def _refill(self, network: Network) -> None:
        task = self._refills.get(network)
        if (task is None or task.done()) and self._want and not self._is_closed:
            self._refills[network] = asyncio.create_task(self._refill_later(network))

    async def _refill_later(self, network: Network) -> None:
        await asyncio.sleep(_REFILL_DELAY_S)
        try:
            await self.fill(network)
        except SandboxError as error:
            _log.warning("no stem cell for network %s: %s", network.value, error)

    async def _make(self, network: Network) -> Cell:
        async with AsyncExitStack() as undo:
            name = f"{next(_numbers)}"
            uid = self.uids.take()
            undo.callback(self.uids.give_back, uid)
            try:
                cgroup = self._cgroups.make(name, self.limits)
                undo.push_async_callback(cgroup.remove)
                tasks = cgroup.entry_fds()
            except OSError as error:
                raise SandboxError(f"the sandbox's cgroup cannot be made: {error}") from error
            link, theirs = Link.pair()
            undo.callback(link.close)
            packet = {
                "fork": "cell",
                "uid": uid - self.uids.base,
                "network": network is not Network.HOST,
                "tmp_mb": self.limits.tmp_mb,
            }
            ended = await self.zygote.fork(name, packet, theirs, tasks)
            netns, pidfd = await self._prepared(link, ended)
            undo.callback(os.close, netns)
            cell = Cell(
                name=name,
                uid=uid,
                link=link,
                pidfd=pidfd,
                cgroup=cgroup,
                ended=ended,
                give_back=lambda: self._give_back(uid, int(name), network),
            )
            whole = AsyncExitStack()  # from here on the cell undoes itself
            undo.pop_all()
            whole.push_async_callback(cell.destroy)
            try:
                await self._finish(cell, pidfd, netns, network)
            except BaseException:
                await whole.aclose()
                raise
            finally:
                os.close(netns)
            return cell

    async def _prepared(self, link: Link, ended: asyncio.Future[Death]) -> tuple[int, int]:
        packet, fds = await _receive(link, _HANDLES)
        if len(fds) == _HANDLES:
            return fds[0], fds[1]
        for fd in fds:
            os.close(fd)
        if packet is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    raise SandboxError(
                        f"the sandbox could not be made: {await asyncio.shield(ended)}"
                    )
        raise SandboxUnavailableError("the zygote does not answer", retry_after_s=1)

    async def _finish(self, cell: Cell, pidfd: int, netns: int, network: Network) -> None:
        if cell.cgroup.enters_by_attach:
            await asyncio.to_thread(cell.cgroup.attach, pid_of(pidfd))
        provider = self._networks.get(network)
        if provider is None:
            return
        try:
            way = await provider.attach(int(cell.name), netns)
            order = {
                "device": way.device,
                "address": way.address,
                "gateway": way.gateway,
                "gateway_hardware": way.gateway_hardware,
            }
            await cell.link.send(order)
        except OSError as error:
            raise SandboxError(f"the sandbox's network cannot be made: {error}") from error
        packet, _ = await _receive(cell.link)
        if packet is None:
            await cell.destroy()
            raise SandboxError(f"the sandbox's network cannot be made: {await cell.ended}")

    async def _give_back(self, uid: int, number: int, network: Network) -> None:
        provider = self._networks.get(network)
        if provider is not None:
            await provider.detach(number)
        self.uids.give_back(uid)

    async def close(self) -> None:
        """Destroy the stem cells and make no more; idempotent."""
        self._is_closed = True
        for task in self._refills.values():
            task.cancel()
        await asyncio.gather(*self._refills.values(), return_exceptions=True)
        stems = [cell for cells in self._stems.values() for cell in cells]
        self._stems.clear()
        await asyncio.gather(*(cell.destroy() for cell in stems))


async def _receive(link: Link, most_fds: int = 0) -> tuple[dict[str, Any] | None, list[int]]:
    # A zygote that has imported a stranger's code may keep us waiting.
    try:
        async with asyncio.timeout(_PREPARE_TIMEOUT_S):
            return await link.receive(most_fds)
    except TimeoutError:
        return None, []
