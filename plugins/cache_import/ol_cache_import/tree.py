"""Decides over the tree of zygotes: which one a handler is forked from, which one to make next, which one to give up.

Values only: no clock, no I/O. A node's *saving* for a handler is the time of the imports that it spares; its *value* is
what it saves beyond the next best node, over all handlers, weighted by how often they start of late. A node costs
memory; so what is made next, and what stays, goes by value for each byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ol_cache_import.fit import conflict, why_unfit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ol_cache_import.ledger import Demand, Ledger

LEAST_BYTES = 1 << 20
"""What even a zygote without imports takes: page tables, and its processes."""


@dataclass(slots=True, kw_only=True, eq=False)
class Node:
    """One zygote, as far as decisions go; modules and wheels include its parents'."""

    id: str
    """Never used again for another node."""
    parent: Node | None
    wheels: frozenset[str]
    """The folders on its path."""
    imports: tuple[str, ...]
    """What it was asked to import, its parents' not included."""
    loaded: frozenset[str]
    missed: frozenset[str]
    memory_bytes: int
    pinned: bool = False
    """Whether the operator asked for it: no memory pressure removes it."""

    def saving_us(self, demand: Demand) -> int:
        """What the handler of *demand* is spared by being forked from here; 0 where it may not be."""
        known = demand.savings.get(self.id)
        if known is None:
            modules = demand.modules
            known = (
                sum(modules[name].us for name in modules.keys() & self.loaded)
                if self.suits(demand)
                else 0
            )
            demand.savings[self.id] = known
        return known

    def suits(self, demand: Demand) -> bool:
        """Whether the handler of *demand* may be forked from here."""
        known = demand.fits.get(self.id)
        if known is None:
            known = why_unfit(demand.wanted, self.wheels, self.loaded, self.missed) is None
            demand.fits[self.id] = known
        return known


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One node to make."""

    wheels: frozenset[str]
    imports: tuple[str, ...]
    """In order."""
    parent: Node | None
    value: float
    """Microseconds saved, weighted."""
    bytes: int
    """What it is expected to take."""
    replaces: Node | None = None
    """The node to give up when this one is there, because it hangs better."""

    @property
    def worth(self) -> float:
        """Value for each byte."""
        return self.value / self.bytes


class Tree:
    """The nodes there are."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def best(self, demand: Demand) -> Node | None:
        """Pick the node that spares the handler most; the one with fewer wheels among equals; ``None`` spares nothing."""
        best, best_us = None, 0
        for node in self.nodes.values():
            us = node.saving_us(demand)
            if us > best_us or (best and us == best_us and len(node.wheels) < len(best.wheels)):
                best, best_us = node, us
        return best

    def guess(self, demand: Demand) -> Node | None:
        """Pick a node for a handler that was never seen to import: the one with most of its wheels."""
        suited = [node for node in self.nodes.values() if node.suits(demand)]
        return max(suited, key=lambda node: (len(node.wheels), len(node.loaded)), default=None)

    def children(self, node: Node) -> list[Node]:
        """List the nodes whose parent is *node*."""
        return [one for one in self.nodes.values() if one.parent is node]

    def values(self, ledger: Ledger, now_s: float) -> dict[str, float]:
        """Say what each node, by its id, saves beyond the next best, weighted, in microseconds."""
        total = dict.fromkeys(self.nodes, 0.0)
        for demand, weight in ledger.weights(now_s):
            # Only the best node of a handler saves more than every other does.
            best_us = second_us = 0
            best = ""
            for node in self.nodes.values():
                us = node.saving_us(demand)
                if us > best_us:
                    best, best_us, second_us = node.id, us, best_us
                elif us > second_us:
                    second_us = us
            if best:
                total[best] += weight * (best_us - second_us)
        return total

    def least_worth(
        self, ledger: Ledger, now_s: float, is_idle: Callable[[Node], bool]
    ) -> Node | None:
        """Pick the node to give up next: of the idle leaves the one with the least value for each byte."""
        leaves = [
            node
            for node in self.nodes.values()
            if not node.pinned and is_idle(node) and not self.children(node)
        ]
        if not leaves:
            return None
        values = self.values(ledger, now_s)
        return min(leaves, key=lambda node: values[node.id] / max(node.memory_bytes, LEAST_BYTES))

    @property
    def memory_bytes(self) -> int:
        """What all nodes take together."""
        return sum(max(node.memory_bytes, LEAST_BYTES) for node in self.nodes.values())

    def parent_for(
        self, wheels: frozenset[str], modules_of: Mapping[str, frozenset[str]]
    ) -> Node | None:
        """Pick the node below which one with *wheels* hangs best: the one with most of them loaded already.

        Args:
            wheels: The folders that the new node has on its path.
            modules_of: What each wheel provides.
        """
        fitting = (node for node in self.nodes.values() if node.wheels < wheels)
        suited = [node for node in fitting if _may_hang(wheels, node, modules_of)]
        return max(suited, key=lambda node: (len(node.wheels), len(node.loaded)), default=None)


def _may_hang(wheels: frozenset[str], node: Node, modules_of: Mapping[str, frozenset[str]]) -> bool:
    more: Iterable[frozenset[str]] = (modules_of[wheel] for wheel in wheels - node.wheels)
    return conflict(frozenset().union(*more), node.loaded, node.missed) is None
