"""The import cache: answers at once from the tree there is, and grows it in the background."""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ol_cache_import import preload, saved
from ol_cache_import.growth import Growth, Unfit
from ol_cache_import.ledger import Ledger, Module, wheel_of
from ol_cache_import.pressure import shortage_bytes
from ol_cache_import.tree import Node, Plan, Tree
from olcore.errors import SandboxError
from olcore.interfaces import ImportCache, ZygoteSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ol_cache_import.ledger import Demand
    from ol_cache_import.plugin import TreeSettings
    from olcore.interfaces import ImportRecord, Wanted, WorkerContext, Zygote, ZygotePool

_log = logging.getLogger(__name__)

_TURN_S = 30.0
"""How often the tree is looked after without a reason: zygotes that died, or that may be given up by now."""
_MISSING = ("ModuleNotFoundError", "ImportError")


class TreeCache(ImportCache):
    """A tree of zygotes over one pool.

    Args:
        context: The worker.
        settings: The operator's.
        pool: What makes zygotes; outlives this.
        clock: Seconds on a monotonic clock.
    """

    def __init__(
        self,
        context: WorkerContext,
        settings: TreeSettings,
        pool: ZygotePool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._clock = clock
        self._folder = context.worker_dir / "import-cache"
        self._file = context.worker_dir / "tree" / "learned.json"
        self._packages = context.packages_dir
        self._limit_bytes = settings.import_cache_mb << 20
        self._ledger = Ledger(settings.half_life_s)
        self._tree = Tree()
        self._unfit = Unfit()
        self._measured: dict[str, Module] = {}
        self._kb_of: dict[str, int] = {}
        self._growth = Growth(self._tree, self._ledger, self._unfit, self._kb_of)
        self._zygotes: dict[str, Zygote] = {}
        self._retired: list[Zygote] = []
        self._preload: preload.Branch | None = None
        self._missing: list[str] = []
        """What of it is not installed, as the log says already."""
        self._numbers = itertools.count()
        self._stir = asyncio.Event()
        self._settled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if self._settings.import_cache_tree:
            self._preload = preload.read(
                self._file.parent.parent / self._settings.import_cache_tree
            )
        if self._settings.learn:
            now = self._clock(), time.time()
            await asyncio.to_thread(
                saved.load, self._file, self._packages, self._ledger, self._unfit, *now
            )
        self._stir.set()
        self._task = asyncio.create_task(self._run(), name="import cache")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
            self._save()
        zygotes = [*self._zygotes.values(), *self._retired]
        self._tree.nodes.clear()
        self._zygotes.clear()
        self._retired.clear()
        for zygote in zygotes:
            await zygote.destroy()
            self._remove_folder(zygote.id)

    def choose(self, wanted: Wanted) -> Zygote | None:
        is_new = wanted.handler not in self._ledger.demands
        demand = self._ledger.start(wanted, self._clock())
        while node := self._tree.best(demand) or self._guess(demand):
            zygote = self._zygotes[node.id]
            if zygote.alive:
                if is_new:
                    demand.note(self._modules_of(node))
                return zygote
            self._forget(node)
            self._wake()
        return None

    def observe(self, wanted: Wanted, imported: Sequence[ImportRecord]) -> None:
        if self._ledger.learn(wanted, imported):
            self._wake()

    def failed(self, zygote: Zygote, reason: str) -> None:
        node = self._tree.nodes.get(zygote.id)
        if node is None:
            return
        had = node.parent.wheels if node.parent else frozenset()
        added = node.wheels - had
        if zygote.alive:
            self._unfit.poison.add(added)
            _log.warning("import cache: gave up %s: %s", _said(node.wheels), reason)
        # Killed, perhaps for want of memory: the same wheels may do well in the next one.
        elif self._unfit.died(added):
            _log.warning("import cache: gave up %s, which keeps dying: %s", _said(added), reason)
        else:
            _log.warning("import cache: zygote %s with %s is dead", node.id, _said(node.wheels))
        self._forget(node)
        self._wake()

    async def shrink(self, want_bytes: int) -> int:
        freed = 0
        while freed < want_bytes:
            node = self._tree.least_worth(self._ledger, self._clock(), self._is_idle)
            if node is None:
                break
            freed += await self._give_up(node)
        return freed

    def describe(self) -> Sequence[dict[str, object]]:
        values = self._tree.values(self._ledger, self._clock())
        return [
            {
                "id": node.id,
                "parent": node.parent.id if node.parent else None,
                "wheels": sorted(node.wheels),
                "imports": list(node.imports),
                "modules": len(node.loaded),
                "memory_mb": round(node.memory_bytes / (1 << 20), 1),
                "value_ms": round(values[node.id] / 1000, 1),
                "descendants": self._zygotes[node.id].descendants,
            }
            for node in self._tree.nodes.values()
        ]

    async def settle(self) -> None:
        """Wait until nothing is worth another zygote; for tests and measurements."""
        await self._settled.wait()

    def _wake(self) -> None:
        self._settled.clear()
        self._stir.set()

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stir.wait(), _TURN_S)
            self._stir.clear()
            try:
                await self._turn()
            except Exception:  # noqa: BLE001 - logged with its traceback
                # Requests go on without the cache's growth; the next turn tries again.
                _log.exception("import cache: a turn failed")
            if not self._stir.is_set():
                self._settled.set()

    async def _turn(self) -> None:
        await self._sweep()
        if short := shortage_bytes():
            freed = await self.shrink(short)
            _log.info("import cache: memory is short by %d MiB, freed %d", short >> 20, freed >> 20)
            return  # what was given up must not be made again at once
        if self._preload is not None:
            await self._make_preloaded(self._preload)
        refused: set[frozenset[str]] = set()
        before = len(self._tree.nodes)
        while plan := await self._next_plan(frozenset(refused)):
            # Once a turn at most, whatever comes of it: what did not help once will not the second time.
            refused.add(plan.wheels)
            # Its parent may have been given up meanwhile; the next turn then finds another.
            if await self._make_room(plan) and self._is_there(plan.parent):
                await self._grow(plan)
        if self._settings.learn and (refused or before != len(self._tree.nodes)):
            self._save()

    async def _next_plan(self, refused: frozenset[frozenset[str]]) -> Plan | None:
        search = self._growth.search(self._clock(), refused)
        while True:
            try:
                next(search)
            except StopIteration as end:
                plan: Plan | None = end.value
                return plan
            await asyncio.sleep(0)  # requests go first

    def _is_there(self, node: Node | None) -> bool:
        return node is None or node.id in self._zygotes

    async def _sweep(self) -> None:
        for node in [one for one in self._tree.nodes.values() if not self._zygotes[one.id].alive]:
            self._forget(node)
        for zygote in list(self._retired):
            if zygote.alive and zygote.descendants:
                continue
            self._retired.remove(zygote)
            await zygote.destroy()
            self._remove_folder(zygote.id)

    async def _make_preloaded(self, branch: preload.Branch) -> None:
        installed = await asyncio.to_thread(preload.Installed, self._packages)
        missing = []
        for planned in preload.plan(branch, installed):
            if isinstance(planned, str):
                missing.append(planned)
                continue
            there = any(node.wheels == planned.wheels for node in self._tree.nodes.values())
            if there or self._unfit.has(planned.wheels):
                continue
            # Its own parent in the file, which is there by now, is the node with most of its wheels.
            parents = [node for node in self._tree.nodes.values() if node.wheels < planned.wheels]
            parent = max(parents, key=lambda node: len(node.wheels), default=None)
            plan = Plan(
                wheels=planned.wheels, imports=planned.imports, parent=parent, value=0.0, bytes=1
            )
            await self._grow(plan, pinned=True)
        if missing and missing != self._missing:
            _log.info("import cache: not installed, so not preloaded: %s", ", ".join(missing))
        self._missing = missing
        if not missing:
            self._preload = None

    async def _make_room(self, plan: Plan) -> bool:
        while self._tree.memory_bytes + plan.bytes > self._limit_bytes:
            now_s = self._clock()
            node = self._tree.least_worth(self._ledger, now_s, self._is_idle)
            if node is None or node is plan.parent:
                return False
            value = self._tree.values(self._ledger, now_s)[node.id]
            worth = value / max(node.memory_bytes, 1)
            if worth >= plan.worth:
                return False
            await self._give_up(node)
        return True

    async def _grow(self, plan: Plan, *, pinned: bool = False) -> None:
        try:
            zygote = await self._make_zygote(plan, plan.imports)
        except SandboxError as error:
            # A submodule that one handler could import, with what it had imported before, may be what fails. So the
            # packages themselves get a second chance.
            only = tuple(name for name in plan.imports if "." not in name)
            if only == plan.imports or not only:
                self._note_failure(plan, error.message)
                return
            try:
                zygote = await self._make_zygote(plan, only)
            except SandboxError as second:
                self._note_failure(plan, second.message)
                return
        node = self._keep(zygote, plan, pinned=pinned)
        _log.info(
            "import cache: zygote %s has %s (%d modules, %.1f MiB)",
            *(node.id, _said(node.wheels), len(node.loaded), node.memory_bytes / (1 << 20)),
        )
        if plan.replaces is not None and plan.replaces.id in self._tree.nodes:
            self._forget(plan.replaces)
            await self._sweep()

    def _keep(self, zygote: Zygote, plan: Plan, *, pinned: bool) -> Node:
        parent = plan.parent
        for record in zygote.imported:
            wheel = wheel_of(record.file)
            if wheel is not None:
                self._measured[record.module] = Module(wheel, record.self_us)
                self._kb_of[record.module] = record.self_kb
        node = Node(
            id=zygote.id,
            parent=parent,
            wheels=plan.wheels,
            imports=plan.imports,
            loaded=frozenset(record.module for record in zygote.imported)
            | (parent.loaded if parent else frozenset()),
            missed=zygote.missed | (parent.missed if parent else frozenset()),
            memory_bytes=zygote.memory_bytes,
            pinned=pinned,
        )
        self._zygotes[node.id] = zygote
        self._tree.nodes[node.id] = node
        return node

    async def _make_zygote(self, plan: Plan, imports: tuple[str, ...]) -> Zygote:
        identity = str(next(self._numbers))
        folder = self._folder / identity
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        spec = ZygoteSpec(
            id=identity,
            folder=folder,
            sys_path=[f"/packages/{wheel}" for wheel in sorted(plan.wheels)],
            imports=imports,
        )
        parent = self._zygotes[plan.parent.id] if plan.parent else None
        return await self._pool.create_zygote(spec, parent)

    def _note_failure(self, plan: Plan, reason: str) -> None:
        _log.warning("import cache: cannot preload %s: %s", _said(plan.wheels), reason)
        if plan.parent is not None and not self._zygotes[plan.parent.id].alive:
            return  # the parent's end, and not these packages' fault
        if any(kind in reason for kind in _MISSING):
            self._unfit.exact.add(plan.wheels)
        else:
            had = plan.parent.wheels if plan.parent else frozenset()
            self._unfit.poison.add(plan.wheels - had)

    async def _give_up(self, node: Node) -> int:
        zygote = self._take_out(node)
        await zygote.destroy()
        self._remove_folder(node.id)
        _log.info("import cache: freed zygote %s with %s", node.id, _said(node.wheels))
        return node.memory_bytes

    def _forget(self, node: Node) -> None:
        """Choose *node* and what is below it no more; their zygotes go when nothing lives that was forked from them."""
        for child in self._tree.children(node):
            self._forget(child)
        self._retired.append(self._take_out(node))

    def _take_out(self, node: Node) -> Zygote:
        del self._tree.nodes[node.id]
        self._ledger.forget_node(node.id)
        return self._zygotes.pop(node.id)

    def _guess(self, demand: Demand) -> Node | None:
        return None if demand.modules else self._tree.guess(demand)

    def _is_idle(self, node: Node) -> bool:
        return self._zygotes[node.id].descendants == 0

    def _modules_of(self, node: Node) -> dict[str, Module]:
        return {
            name: self._measured[name]
            for name in node.loaded
            if name in self._measured and self._measured[name].wheel
        }

    def _save(self) -> None:
        if self._settings.learn:
            now = self._clock(), time.time()
            with suppress(OSError):  # the next save may succeed, and nothing depends on it
                saved.save(self._file, self._ledger, self._unfit, *now)

    def _remove_folder(self, identity: str) -> None:
        shutil.rmtree(self._folder / identity, ignore_errors=True)


def _said(wheels: frozenset[str]) -> str:
    return ", ".join("-".join(wheel.split("-")[:2]) for wheel in sorted(wheels))
