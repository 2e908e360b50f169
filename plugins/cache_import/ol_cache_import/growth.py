"""Decides which node the tree gets next.

Candidates are the sets of wheels that handlers import from, and what two of these have in common. A candidate imports
what at least half of the handlers that use a wheel import from it. What several candidates share is made first when it
is large enough that keeping it twice would cost more than one zygote more.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from ol_cache_import.tree import LEAST_BYTES, Plan

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence

    from ol_cache_import.ledger import Demand, Ledger
    from ol_cache_import.tree import Node, Tree

WORTH_US = 5_000.0
"""A node that would save less is not made: forking costs a millisecond or two anyhow."""
SHARED_BYTES = 4 << 20
"""What two nodes must have in common for a node of its own."""
MODULE_BYTES = 40 << 10
"""A module's memory as long as no zygote has measured it."""
MOST_DEATHS = 3
"""How often zygotes with the same wheels may be found dead when they are to be forked, before these are given up."""
_MOST = 40


class Unfit:
    """What cannot be preloaded, because it was tried."""

    def __init__(self) -> None:
        self.exact: set[frozenset[str]] = set()
        """Sets of wheels whose imports need a wheel that is not among them."""
        self.poison: set[frozenset[str]] = set()
        """Wheels that together do not survive being forked, or being imported without a handler."""
        self.deaths: dict[frozenset[str], int] = {}
        """How many zygotes died that added these wheels: for one, whoever killed it is to blame, and not the wheels."""

    def died(self, wheels: frozenset[str]) -> bool:
        """Count the death of a zygote that added *wheels*, and say whether they are given up."""
        self.deaths[wheels] = self.deaths.get(wheels, 0) + 1
        return self.deaths[wheels] >= MOST_DEATHS

    def has(self, wheels: frozenset[str]) -> bool:
        """Whether a zygote with *wheels* is known to be of no use."""
        return (
            wheels in self.exact
            or any(bad <= wheels for bad in self.poison)
            or any(deaths >= MOST_DEATHS and bad <= wheels for bad, deaths in self.deaths.items())
        )


class Growth:
    """Plans nodes.

    Args:
        tree: The nodes there are.
        ledger: What handlers want.
        unfit: What has been tried in vain.
        kb_of: The memory of modules, in KiB, where it has been measured.
    """

    def __init__(self, tree: Tree, ledger: Ledger, unfit: Unfit, kb_of: Mapping[str, int]) -> None:
        self._tree = tree
        self._ledger = ledger
        self._unfit = unfit
        self._kb_of = kb_of
        self._modules_of: dict[str, frozenset[str]] = {}

    def search(
        self, now_s: float, refused: frozenset[frozenset[str]] = frozenset()
    ) -> Generator[None, None, Plan | None]:
        """Plan the node that is worth most for its memory, in steps of a few milliseconds; ``None`` when none is worth it.

        Requests may be served between the steps. The tree may lose nodes meanwhile, so the plan's parent may be gone
        when it is told.

        Args:
            now_s: Now.
            refused: Sets of wheels that do not come into question this time.
        """
        demands = self._demands(now_s)
        plans = {}
        for wheels in self._candidates(demands) - refused:
            if plan := self._plan(wheels, demands):
                plans[wheels] = plan
            yield
        if plans:
            best = max(plans.values(), key=lambda plan: (plan.worth, len(plan.wheels)))
            return self._shared_first(best, plans)
        for node in list(self._tree.nodes.values()):
            if plan := self._rehung(node, demands, refused):
                return plan
            yield
        return None

    def imports(
        self, wheels: frozenset[str], demands: Sequence[tuple[Demand, float]]
    ) -> tuple[str, ...]:
        """Name what a node with *wheels* imports, in the order in which handlers do."""
        users: dict[str, float] = {}
        votes: dict[str, float] = {}
        wheel_of: dict[str, str] = {}
        for demand, weight in demands:
            for wheel in demand.imported_wheels & wheels:
                users[wheel] = users.get(wheel, 0.0) + weight
            for name, module in demand.modules.items():
                if module.wheel in wheels:
                    votes[name] = votes.get(name, 0.0) + weight
                    wheel_of[name] = module.wheel
        return tuple(name for name, vote in votes.items() if 2 * vote >= users[wheel_of[name]])

    def _demands(self, now_s: float) -> list[tuple[Demand, float]]:
        weighed = [(demand, weight) for demand, weight in self._ledger.weights(now_s)]
        known = [(demand, weight) for demand, weight in weighed if demand.imported_wheels]
        known.sort(key=lambda pair: pair[1], reverse=True)
        for demand, _ in known[:_MOST]:
            for wheel in demand.wanted.wheels:
                self._modules_of[wheel.folder] = wheel.modules
        return known[:_MOST]

    def _candidates(self, demands: Sequence[tuple[Demand, float]]) -> set[frozenset[str]]:
        whole = {self._preloadable(demand) for demand, _ in demands}
        shared = {first & second for first, second in combinations(whole, 2)}
        there = {node.wheels for node in self._tree.nodes.values()}
        return {
            wheels
            for wheels in whole | shared
            if wheels and wheels not in there and not self._unfit.has(wheels)
        }

    def _preloadable(self, demand: Demand) -> frozenset[str]:
        """Name the wheels that *demand* imports from, less those that a zygote cannot stand for."""
        wanted = [wheel for wheel in demand.wanted.wheels if wheel.folder in demand.imported_wheels]
        # A .pth file may do anything to the path; and where two wheels have the same module, their order decides.
        doubled = {
            wheel.folder
            for one, other in combinations(demand.wanted.wheels, 2)
            if one.modules & other.modules
            for wheel in (one, other)
        }
        return frozenset(
            wheel.folder for wheel in wanted if not wheel.pth and wheel.folder not in doubled
        )

    def _plan(self, wheels: frozenset[str], demands: Sequence[tuple[Demand, float]]) -> Plan | None:
        users = [(demand, weight) for demand, weight in demands if wheels <= demand.wheels]
        imports = self.imports(wheels, users)
        parent = self._tree.parent_for(wheels, self._modules_of)
        loaded = frozenset(imports) | (parent.loaded if parent else frozenset())
        value = 0.0
        for demand, weight in users:
            best = self._tree.best(demand)
            spared = sum(demand.modules[name].us for name in demand.modules.keys() & loaded)
            value += weight * max(0, spared - (best.saving_us(demand) if best else 0))
        if value < WORTH_US:
            return None
        new = loaded - parent.loaded if parent else loaded
        return Plan(
            wheels=wheels,
            imports=tuple(name for name in imports if name in new),
            parent=parent,
            value=value,
            bytes=LEAST_BYTES + self._bytes(new),
        )

    def _shared_first(self, best: Plan, plans: Mapping[frozenset[str], Plan]) -> Plan:
        """Take what *best* has in common with others before it, when that is much."""
        below = [
            plan
            for plan in plans.values()
            if plan.wheels < best.wheels and plan.bytes >= SHARED_BYTES + LEAST_BYTES
        ]
        return max(below, key=lambda plan: len(plan.wheels), default=best)

    def _rehung(
        self,
        node: Node,
        demands: Sequence[tuple[Demand, float]],
        refused: frozenset[frozenset[str]],
    ) -> Plan | None:
        """Plan a leaf anew when it would share much more with another parent than with the one it has."""
        if node.pinned or node.wheels in refused or self._tree.children(node):
            return None
        parent = self._tree.parent_for(node.wheels, self._modules_of_all(node.wheels))
        if parent is None or parent is node.parent:
            return None
        had = node.parent.loaded if node.parent else frozenset()
        if self._bytes((parent.loaded & node.loaded) - had) < SHARED_BYTES:
            return None
        users = [pair for pair in demands if node.wheels <= pair[0].wheels]
        imports = self.imports(node.wheels, users) or node.imports
        return Plan(
            wheels=node.wheels,
            imports=tuple(name for name in imports if name not in parent.loaded),
            parent=parent,
            value=WORTH_US,
            bytes=LEAST_BYTES + self._bytes(node.loaded - parent.loaded),
            replaces=node,
        )

    def _modules_of_all(self, wheels: frozenset[str]) -> Mapping[str, frozenset[str]]:
        return {wheel: self._modules_of.get(wheel, frozenset()) for wheel in wheels}

    def _bytes(self, modules: Iterable[str]) -> int:
        return sum(
            self._kb_of[name] * 1024 if name in self._kb_of else MODULE_BYTES for name in modules
        )
