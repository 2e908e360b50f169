"""What the tree decides, on values and a clock that the test sets."""

from __future__ import annotations

import itertools
from collections.abc import Generator

from hypothesis import given
from hypothesis import strategies as st

from ol_cache_import.growth import Growth, Unfit
from ol_cache_import.ledger import MAX_US, Ledger
from ol_cache_import.tree import Node, Plan, Tree
from olcore.interfaces import ImportRecord, Wanted, Wheel

MIB = 1 << 20
COST_MS = {"numpy": 80, "pandas": 300, "scipy": 200, "requests": 40, "six": 1}


def wheel(name: str, *, pth: bool = False) -> Wheel:
    return Wheel(folder=f"{name}-1", modules=frozenset({name}), pth=pth)


def wanted(handler: str, *names: str) -> Wanted:
    return Wanted(handler=handler, wheels=tuple(wheel(name) for name in names))


def record(name: str, us: int | None = None) -> ImportRecord:
    top = name.partition(".")[0]
    return ImportRecord(
        module=name,
        file=f"/packages/{top}-1/{top}/__init__.py",
        self_us=COST_MS[top] * 1000 if us is None else us,
        self_kb=0,
    )


def found(search: Generator[None, None, Plan | None]) -> Plan | None:
    """Run a search to its end."""
    while True:
        try:
            next(search)
        except StopIteration as end:
            plan: Plan | None = end.value
            return plan


class World:
    """A tree that is grown without a pool: what is planned has at once imported what it should."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.ledger = Ledger(half_life_s=100)
        self.tree = Tree()
        self.unfit = Unfit()
        self.kb = {
            "numpy": 20_000,
            "pandas": 50_000,
            "scipy": 30_000,
            "requests": 8_000,
            "six": 100,
        }
        self.growth = Growth(self.tree, self.ledger, self.unfit, self.kb)
        self.numbers = itertools.count()
        self.missed: dict[str, tuple[str, ...]] = {}

    def start(self, handler: str, *names: str, imports: tuple[str, ...] | None = None) -> None:
        self.ledger.start(wanted(handler, *names), self.now_s)
        records = [record(name) for name in (names if imports is None else imports)]
        self.ledger.learn(wanted(handler, *names), records)

    def make(self, plan: Plan) -> Node:
        loaded = frozenset(plan.imports) | (plan.parent.loaded if plan.parent else frozenset())
        node = Node(
            id=str(next(self.numbers)),
            parent=plan.parent,
            wheels=plan.wheels,
            imports=plan.imports,
            loaded=loaded,
            missed=frozenset(name for one in loaded for name in self.missed.get(one, ())),
            memory_bytes=sum(self.kb[name] * 1024 for name in plan.imports),
        )
        self.tree.nodes[node.id] = node
        if plan.replaces is not None:
            del self.tree.nodes[plan.replaces.id]
        return node

    def grow(self) -> list[frozenset[str]]:
        made: list[frozenset[str]] = []
        while plan := found(self.growth.search(self.now_s, frozenset(made))):
            made.append(plan.wheels)
            self.make(plan)
        return made

    def best(self, handler: str) -> Node | None:
        return self.tree.best(self.ledger.demands[handler])


def names(node: Node | None) -> set[str]:
    return {folder.partition("-")[0] for folder in node.wheels} if node else set()


def test_one_handler_gets_one_node_with_what_it_imports() -> None:
    world = World()
    world.start("plot", "numpy", "pandas", "six", imports=("numpy", "pandas"))
    assert world.grow() == [frozenset({"numpy-1", "pandas-1"})]
    node = world.best("plot")
    assert node is not None
    assert node.imports == ("numpy", "pandas")
    assert world.grow() == []


def test_what_saves_next_to_nothing_is_not_made() -> None:
    world = World()
    world.start("small", "six")
    assert world.grow() == []


def test_what_two_handlers_share_becomes_a_node_between() -> None:
    world = World()
    world.start("frames", "numpy", "pandas")
    world.start("science", "numpy", "scipy")
    assert world.grow()[0] == frozenset({"numpy-1"})
    frames, science = world.best("frames"), world.best("science")
    assert frames is not None
    assert science is not None
    assert (names(frames), names(science)) == ({"numpy", "pandas"}, {"numpy", "scipy"})
    assert frames.parent is science.parent is not None
    assert frames.imports == ("pandas",)


def test_a_leaf_is_hung_below_a_node_that_came_later_and_shares_much_with_it() -> None:
    world = World()
    world.start("frames", "numpy", "pandas")
    world.grow()
    world.start("science", "numpy", "scipy")
    world.start("plain", "numpy")
    world.grow()
    frames = world.best("frames")
    assert frames is not None
    assert names(frames.parent) == {"numpy"}
    assert len(world.tree.nodes) == 3


def test_a_handler_is_never_forked_from_a_node_with_one_wheel_more() -> None:
    world = World()
    world.start("frames", "numpy", "pandas")
    world.grow()
    world.start("plain", "numpy")
    assert world.best("plain") is None
    world.grow()
    assert names(world.best("plain")) == {"numpy"}


def test_a_node_that_missed_what_a_handler_has_gets_a_sister() -> None:
    world = World()
    world.kb["numexpr"] = COST_MS["numexpr"] = 100
    world.missed["pandas"] = ("numexpr",)
    world.start("frames", "numpy", "pandas")
    world.grow()
    world.start("fast", "numpy", "pandas", "numexpr")
    assert world.best("fast") is None
    world.grow()
    assert names(world.best("fast")) == {"numpy", "pandas", "numexpr"}
    assert names(world.best("frames")) == {"numpy", "pandas"}


def test_a_node_imports_what_half_of_its_handlers_do() -> None:
    world = World()
    for number in range(4):
        extra = ("pandas.testing",) if number == 0 else ("pandas.io",) if number < 3 else ()
        world.start(f"h{number}", "pandas", imports=("pandas", *extra))
    plan = found(world.growth.search(world.now_s))
    assert plan is not None
    assert plan.imports == ("pandas", "pandas.io")


def test_wheels_with_pth_files_and_doubled_modules_are_not_preloaded() -> None:
    world = World()
    odd = Wheel(folder="six-1", modules=frozenset({"six"}), pth=True)
    twin = Wheel(folder="scipy-1", modules=frozenset({"numpy"}))
    one = Wanted(handler="odd", wheels=(odd, twin, wheel("numpy"), wheel("pandas")))
    world.ledger.start(one, 0)
    world.ledger.learn(one, [record("six"), record("numpy"), record("pandas")])
    plan = found(world.growth.search(0))
    assert plan is not None
    assert plan.wheels == {"pandas-1"}


def test_what_could_not_be_preloaded_is_not_tried_again() -> None:
    world = World()
    world.start("frames", "numpy", "pandas")
    world.unfit.poison.add(frozenset({"pandas-1"}))
    assert world.grow() == []
    world.start("plain", "numpy")
    assert world.grow() == [frozenset({"numpy-1"})]
    world.unfit.exact.add(frozenset({"scipy-1"}))
    world.start("science", "scipy", "numpy")
    assert frozenset({"scipy-1", "numpy-1"}) in world.grow()


def test_popularity_decays() -> None:
    world = World()
    world.start("frames", "pandas")
    demand = world.ledger.demands["frames"]
    assert demand.weight_at(0, 100) == 1
    assert demand.weight_at(100, 100) == 0.5
    world.now_s = 2000
    assert world.grow() == []


def test_the_idle_leaf_with_the_least_value_for_its_memory_goes_first() -> None:
    world = World()
    for _ in range(50):
        world.start("web", "requests")
    world.start("frames", "numpy", "pandas")
    world.start("science", "numpy", "scipy")
    world.grow()
    order = []
    while node := world.tree.least_worth(world.ledger, 0, lambda _: True):
        order.append(names(node))
        del world.tree.nodes[node.id]
    assert order[-1] == {"requests"}
    assert order.index({"numpy"}) > order.index({"numpy", "pandas"})
    assert order.index({"numpy"}) > order.index({"numpy", "scipy"})


def test_a_nodes_value_is_what_it_spares_beyond_the_next_best() -> None:
    world = World()
    world.start("frames", "numpy", "pandas")
    world.start("science", "numpy", "scipy")
    world.start("science", "numpy", "scipy")
    world.grow()
    values = world.tree.values(world.ledger, 0)
    value_of = {frozenset(names(node)): values[node.id] for node in world.tree.nodes.values()}
    assert value_of == {
        frozenset({"numpy"}): 0.0,
        frozenset({"numpy", "pandas"}): 300_000.0,
        frozenset({"numpy", "scipy"}): 2 * 200_000.0,
    }


def test_what_a_node_spares_follows_what_its_handler_imports() -> None:
    world = World()
    world.start("h", "numpy", "pandas", imports=("numpy",))
    world.grow()
    demand = world.ledger.demands["h"]
    (node,) = world.tree.nodes.values()
    assert node.saving_us(demand) == 80_000
    world.ledger.learn(demand.wanted, [record("numpy", 50_000)])
    assert node.saving_us(demand) == 50_000
    world.start("h", "numpy", "pandas", imports=("pandas",))
    assert demand.imported_wheels == {"numpy-1", "pandas-1"}


def test_nothing_is_kept_of_a_node_that_is_no_more() -> None:
    world = World()
    world.start("h", "numpy")
    world.grow()
    demand = world.ledger.demands["h"]
    (node,) = world.tree.nodes.values()
    assert world.best("h") is node
    world.ledger.forget_node(node.id)
    assert not demand.fits
    assert not demand.savings


def test_a_busy_or_pinned_leaf_stays() -> None:
    world = World()
    world.start("frames", "pandas")
    world.grow()
    (node,) = world.tree.nodes.values()
    assert world.tree.least_worth(world.ledger, 0, lambda _: False) is None
    node.pinned = True
    assert world.tree.least_worth(world.ledger, 0, lambda _: True) is None


def test_a_handler_with_other_wheels_is_judged_anew() -> None:
    world = World()
    world.start("h", "numpy", "pandas")
    world.grow()
    assert world.best("h") is not None
    world.start("h", "numpy")
    assert world.best("h") is None


def test_what_an_instance_says_is_bounded_and_believed_for_its_own_wheels_only() -> None:
    ledger = Ledger(half_life_s=1)
    one = wanted("h", "numpy")
    ledger.learn(
        one,
        [
            record("numpy", us=10**12),
            record("pandas"),
            ImportRecord(module="numpy.x;y", file="/packages/numpy-1/x", self_us=1, self_kb=0),
            ImportRecord(module="evil", file="/packages/numpy-1/evil.py", self_us=1, self_kb=0),
            ImportRecord(
                module="lambda_func", file="/handler/lambda_func.py", self_us=1, self_kb=0
            ),
            ImportRecord(module="json", file="/usr/lib/python3/json.py", self_us=-5, self_kb=0),
        ],
    )
    modules = ledger.demands["h"].modules
    assert {name: (module.wheel, module.us) for name, module in modules.items()} == {
        "numpy": ("numpy-1", MAX_US),
        "json": ("", 0),
    }


@given(
    st.lists(
        st.sets(st.sampled_from(sorted(set(COST_MS) - {"numexpr"})), min_size=1),
        min_size=1,
        max_size=8,
    )
)
def test_growth_ends_and_every_handler_is_served_from_its_own_wheels_only(
    sets: list[set[str]],
) -> None:
    world = World()
    for number, one in enumerate(sets):
        world.start(f"h{number}", *sorted(one))
    for _ in range(3):
        world.grow()
    for number, one in enumerate(sets):
        node = world.best(f"h{number}")
        assert names(node) <= one
        if one != {"six"}:
            # Everything that costs much is spared.
            assert node is not None
            assert {name for name in one if COST_MS[name] > 5} <= node.loaded
