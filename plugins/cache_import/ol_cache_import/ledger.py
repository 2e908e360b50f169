"""Keeps what was seen of handlers: what each wants, what it imports, what that costs, and how often it starts.

What an instance says of its imports is a stranger's word. It is believed as far as it concerns the wheels that the
handler wants anyway, and its numbers are bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from ol_cache_import.fit import is_within
from olcore.interfaces import Wanted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from olcore.interfaces import ImportRecord

MAX_DEMANDS = 1000
MAX_MODULES = 5000
MAX_US = 60_000_000
MAX_NAME = 200
_PACKAGES = "/packages/"
_OWN = ("/handler/", "/host/", "/tmp/")  # noqa: S108 - the handler's, as it sees it


class Module(msgspec.Struct, frozen=True):
    """One module that a handler imports."""

    wheel: str
    """The folder it comes from; empty for one of Python's own."""
    us: int
    """What importing it costs, in microseconds, without the imports below it."""


@dataclass(slots=True, kw_only=True, eq=False)
class Demand:
    """One handler with one set of wheels, as far as its cold starts are known."""

    wanted: Wanted
    modules: dict[str, Module] = field(default_factory=dict)
    """What it imports, by full name."""
    weight: float = 0.0
    """Its cold starts, each halved with every half-life; as of ``seen_s``."""
    seen_s: float = 0.0
    wheels: frozenset[str] = field(init=False)
    """The folders of all wheels that it wants."""
    fits: dict[str, bool] = field(default_factory=dict)
    """Whether it may be forked from a node, by the node's id; neither ever changes."""
    savings: dict[str, int] = field(default_factory=dict)
    """What a node spares it, in microseconds, by the node's id; as long as ``modules`` is what it was."""
    _imported: frozenset[str] | None = None

    def __post_init__(self) -> None:
        """Put the folders together once: decisions over many handlers ask for them again and again."""
        self.wheels = frozenset(wheel.folder for wheel in self.wanted.wheels)

    @property
    def imported_wheels(self) -> frozenset[str]:
        """The folders of the wheels that it imports from."""
        if self._imported is None:
            wheels = (module.wheel for module in self.modules.values())
            self._imported = frozenset(wheel for wheel in wheels if wheel)
        return self._imported

    def note(self, modules: Mapping[str, Module]) -> None:
        """Take *modules* to be imported, too, or at another cost than before."""
        self.modules.update(modules)
        self.savings.clear()
        self._imported = None

    def weight_at(self, now_s: float, half_life_s: float) -> float:
        """How much its cold starts count at *now_s*."""
        return float(self.weight * 0.5 ** (max(0.0, now_s - self.seen_s) / half_life_s))


class Ledger:
    """Every demand there is.

    Args:
        half_life_s: After so long a cold start counts half.
    """

    def __init__(self, half_life_s: float) -> None:
        self.half_life_s = half_life_s
        self.demands: dict[str, Demand] = {}

    def start(self, wanted: Wanted, now_s: float) -> Demand:
        """Count one cold start."""
        demand = self.of(wanted)
        demand.weight = demand.weight_at(now_s, self.half_life_s) + 1
        demand.seen_s = now_s
        return demand

    def of(self, wanted: Wanted) -> Demand:
        """Return the demand of a handler; with other wheels it is another demand, and the old one is forgotten."""
        demand = self.demands.get(wanted.handler)
        if demand is None or demand.wanted != wanted:
            if demand is None and len(self.demands) >= MAX_DEMANDS:
                oldest = min(self.demands.values(), key=lambda one: one.seen_s)
                del self.demands[oldest.wanted.handler]
            demand = self.demands[wanted.handler] = Demand(wanted=wanted)
        return demand

    def learn(self, wanted: Wanted, imported: Sequence[ImportRecord]) -> bool:
        """Note what an instance of a handler imported after its fork, and say whether that was news."""
        demand = self.of(wanted)
        known = len(demand.modules)
        provided = {wheel.folder: wheel.modules for wheel in wanted.wheels}
        news: dict[str, Module] = {}
        for record in imported[:MAX_MODULES]:
            wheel = wheel_of(record.file)
            if wheel is None or not _is_name(record.module):
                continue
            if wheel and not is_within(record.module, provided.get(wheel, frozenset())):
                continue
            if known + len(news) < MAX_MODULES or record.module in demand.modules:
                us = min(max(record.self_us, 0), MAX_US)
                news[record.module] = Module(wheel, us)
        demand.note(news)
        return len(demand.modules) > known

    def forget_node(self, identity: str) -> None:
        """Drop what is kept of a node that is no more."""
        for demand in self.demands.values():
            demand.fits.pop(identity, None)
            demand.savings.pop(identity, None)

    def weights(self, now_s: float) -> Iterable[tuple[Demand, float]]:
        """Go through the demands with what each counts at *now_s*."""
        for demand in self.demands.values():
            yield demand, demand.weight_at(now_s, self.half_life_s)


def wheel_of(file: str | None) -> str | None:
    """Name the wheel that a module's file belongs to, empty for none; ``None`` for the handler's own files."""
    if file is not None and file.startswith(_PACKAGES):
        return file[len(_PACKAGES) :].partition("/")[0]
    return None if file is not None and file.startswith(_OWN) else ""


def _is_name(module: str) -> bool:
    return len(module) <= MAX_NAME and all(part.isidentifier() for part in module.split("."))
