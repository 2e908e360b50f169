"""Many requests at once: which instances serve them, and when instances go."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from olcore.errors import HandlerLoadError, InstanceDiedError, QueueFullError
from olcore.interfaces import Create, Limits, Reuse, Scheduler, Wait

if TYPE_CHECKING:
    from collections.abc import Sequence

    from olcore.interfaces import HandlerLoad, Placement
    from tests.handlers.conftest import Gate, House


async def test_concurrent_first_requests_pull_once_and_create_in_parallel(
    house: House, gate: Gate
) -> None:
    await house.open()
    for call in "abc":
        gate.begin(call)
    for call in "abc":
        await gate.inside(call)
    pids = {(await gate.go(call))[2] for call in "abc"}
    assert len(pids) == 3
    assert len(house.told("ol_handler_pulled")) == 1


async def test_requests_beyond_max_instances_are_served_in_order_of_arrival(
    house: House, gate: Gate
) -> None:
    await house.open(max_instances=1)
    await gate.inside("a")
    for call in "bcd":
        gate.begin(call)
        await house.turns()
    for before, after in [("a", "b"), ("b", "c"), ("c", "d")]:
        assert not gate.is_inside(after)
        await gate.go(before)
        await gate.inside(after)
    await gate.go("d")
    assert len(house.pool.specs) == 1


async def test_a_full_queue_rejects_with_the_time_to_come_back(house: House, gate: Gate) -> None:
    await house.open(max_instances=1, max_queue=1)
    await gate.inside("a")
    waiting = gate.begin("b")
    await house.turns()
    with pytest.raises(QueueFullError) as caught:
        await gate.begin("c")
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s >= 1
    await gate.go("a")
    await gate.inside("b")
    await gate.go("b")
    assert waiting.done()


async def test_a_request_that_waits_for_a_creation_is_served_by_who_is_free_first(
    house: House, gate: Gate
) -> None:
    await house.open(max_instances=2)
    await gate.inside("a")
    gate.begin("b")
    await house.turns()
    assert house.states() == ["busy", "starting"]
    await gate.go("a")
    await gate.inside("b")
    await gate.go("b")


async def test_a_failed_creation_fails_one_request_and_the_next_gets_its_own_attempt(
    house: House,
) -> None:
    house.registry.put("broken", "raise RuntimeError('no')\n")
    await house.open(max_instances=1)
    tasks = [house.begin("broken") for _ in range(3)]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [HandlerLoadError] * 3
    assert len({id(answer) for answer in answers}) == 3
    assert len(house.pool.specs) == 3


async def test_a_cancelled_request_leaves_the_queue(house: House, gate: Gate) -> None:
    await house.open(max_instances=1)
    await gate.inside("a")
    gate.begin("b")
    gate.begin("c")
    await house.turns()
    gate.tasks["b"].cancel()
    await house.turns()
    await gate.go("a")
    await gate.inside("c")
    await gate.go("c")
    assert not gate.is_inside("b")


async def test_an_instance_handed_to_a_request_that_was_just_cancelled_serves_the_next(
    house: House, gate: Gate
) -> None:
    await house.open(max_instances=1)
    await gate.inside("a")
    gate.begin("b")
    await house.turns()
    gate.tasks["a"].add_done_callback(lambda _: gate.tasks["b"].cancel())
    await gate.go("a")
    await asyncio.wait({gate.tasks["b"]})
    await gate.inside("c")
    await gate.go("c")


async def test_when_busy_instances_die_new_ones_serve_those_who_wait(house: House) -> None:
    house.registry.put(
        "dies", "import os\ndef handler(event):\n    if event: os._exit(1)\n    return 'fine'\n"
    )
    await house.open(max_instances=2)
    tasks = [house.begin("dies", event) for event in (1, 1, 0, 0, 0)]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers[:2]] == [InstanceDiedError] * 2
    assert answers[2:] == ["fine"] * 3


async def test_new_code_serves_from_the_next_request_on_while_the_old_finishes(
    house: House, gate: Gate
) -> None:
    await house.open()
    old = await gate.inside("old")
    gate.put(version=2)
    await gate.inside("new")
    assert (await gate.go("new"))[1] == 2
    assert not old.done()
    assert (await gate.go("old"))[1] == 1
    assert await house.ended() == ["replaced"]
    await gate.inside("last")
    assert (await gate.go("last"))[1] == 2


async def test_idle_instances_of_old_code_go_at_once_and_their_code_with_them(
    house: House,
) -> None:
    old = house.put_hello()
    await house.open()
    await house.call("hello", {"name": "Bob"})
    new = house.put_hello("Bye")
    assert await house.call("hello", {"name": "Bob"}) == "Bye, Bob!"
    assert await house.ended() == ["replaced"]
    await house.turns()
    assert old != new
    assert [folder.name for folder in (house.worker_dir.code / "hello").iterdir()] == [new]


async def test_a_request_that_came_after_a_change_is_never_served_by_old_code(
    house: House, gate: Gate
) -> None:
    await house.open(max_instances=1)
    await gate.inside("old")
    gate.put(version=2)
    gate.begin("new")
    await house.turns()
    assert (await gate.go("old"))[1] == 1
    await gate.inside("new")
    assert (await gate.go("new"))[1] == 2


async def test_code_that_comes_back_is_served_again(house: House) -> None:
    house.put_hello()
    await house.open()
    await house.call("hello")
    house.put_hello("Bye")
    await house.call("hello")
    house.put_hello()
    assert await house.call("hello", {"name": "Bob"}) == "Hello, Bob!"


async def test_an_instance_that_dies_idle_is_never_handed_out(house: House) -> None:
    house.registry.put("pid", "import os\ndef handler(event):\n    return os.getpid()\n")
    await house.open()
    pid = await house.call("pid")
    os.kill(pid, 9)
    assert await house.ended() == ["died"]
    assert house.told("ol_instance_destroyed")[0]["reason"].death.signal == "SIGKILL"
    assert await house.call("pid") != pid


async def test_a_removed_handler_is_no_longer_served(house: House) -> None:
    house.put_hello()
    await house.open()
    await house.call("hello")
    house.registry.drop("hello")
    with pytest.raises(Exception, match="no handler"):
        await house.call("hello")
    assert await house.ended() == ["replaced"]


async def test_idle_instances_go_after_idle_timeout(house: House) -> None:
    house.put_hello()
    await house.open(idle_timeout_s=0.1)
    await house.call("hello")
    assert await house.ended() == ["idle"]
    assert house.manager.describe() == []


async def test_a_handler_may_want_a_fresh_sandbox_for_each_request(house: House) -> None:
    house.registry.put(
        "once",
        {
            "f.py": "served = 0\ndef f(event):\n    global served\n    served += 1\n    return served\n",
            "ol.yaml": "reuse-sandbox: false\n",
        },
    )
    await house.open()
    assert [await house.call("once"), await house.call("once")] == [1, 1]
    assert await house.ended(2) == ["single_use", "single_use"]


COUNTER = """
import threading, time
count = 0
def work():
    global count
    while True:
        count += 1
        time.sleep(0.001)
threading.Thread(target=work, daemon=True).start()
def handler(event):
    return count
"""


async def test_an_idle_instance_is_frozen_and_thawed_by_the_next_request(house: House) -> None:
    house.registry.put("counter", COUNTER)
    await house.open(pause_after_ms=50)
    await house.call("counter")
    await house.until(lambda: house.told("ol_instance_paused"))
    assert house.states() == ["paused"]
    frozen = house.told("ol_instance_paused")[0]["instance"]
    reply = await house.reply("counter")
    assert reply.invocation.instance == frozen.id
    assert not reply.invocation.cold


async def test_a_request_that_comes_while_an_instance_is_being_frozen_is_served_by_it(
    house: House, gate: Gate
) -> None:
    manager = await house.open(pause_after_ms=60_000)
    await gate.inside("a")
    first = await gate.go("a")
    (handler,) = manager._handlers.values()
    handler.pause_idle(float("inf"))
    await gate.inside("b")
    assert (await gate.go("b"))[2] == first[2]


async def test_a_frozen_instance_that_died_is_replaced_and_the_caller_never_knows(
    house: House,
) -> None:
    house.registry.put("pid", "import os\ndef handler(event):\n    return os.getpid()\n")
    await house.open(pause_after_ms=50)
    pid = await house.call("pid")
    await house.until(lambda: house.told("ol_instance_paused"))
    os.kill(pid, 9)
    assert await house.call("pid") != pid
    assert await house.ended() == ["died"]


async def test_idle_instances_of_others_make_room_when_memory_is_short(house: House) -> None:
    house.put_hello()
    house.registry.put("other", "def handler(event):\n    return 'other'\n")
    await house.open(limits=Limits(memory_mb=100), memory_pool_mb=150)
    await house.call("hello")
    assert await house.call("other") == "other"
    assert await house.ended() == ["evicted"]
    assert house.told("ol_memory_pressure") == [{"used_mb": 100, "limit_mb": 150}]


async def test_who_waits_for_memory_longest_gets_the_instance_that_is_free_first(
    house: House, gate: Gate
) -> None:
    gate.put("second")
    await house.open(limits=Limits(memory_mb=100), memory_pool_mb=150, max_instances=1)
    await gate.inside("a")
    gate.begin("other", "second")
    await house.until(lambda: house.told("ol_memory_pressure"))
    gate.begin("b")
    await house.turns()
    await gate.go("a")
    await gate.inside("other")
    assert not gate.is_inside("b")
    await gate.go("other")
    await gate.inside("b")
    await gate.go("b")


async def test_an_instance_larger_than_all_memory_is_refused_with_the_way_out(
    house: House,
) -> None:
    house.put_hello()
    await house.open(limits=Limits(memory_mb=200), memory_pool_mb=150)
    with pytest.raises(Exception, match="200 MiB does not fit into the worker's 150 MiB") as caught:
        await house.call("hello")
    assert "memory_pool_mb" in str(getattr(caught.value, "hint", ""))


async def test_live_instances_are_described(house: House, gate: Gate) -> None:
    await house.open()
    await gate.inside("a")
    (told,) = house.manager.describe()
    assert told["handler"] == "gated"
    assert told["state"] == "busy"
    await gate.go("a")
    (told,) = house.manager.describe()
    assert told["state"] == "idle"
    assert told["served"] == 1
    assert isinstance(told["cold_start_ms"], float)
    assert told["cold_start_ms"] > 0


class Contrary(Scheduler):
    """Decides wrongly whenever it can; no request may hang for that."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement

    def place(self, load: HandlerLoad) -> Placement:
        return self.placement

    def retire(self, loads: Sequence[HandlerLoad]) -> Sequence[str]:
        return ["nobody"]

    def evict(self, loads: Sequence[HandlerLoad], want: int) -> Sequence[str]:
        return ["nobody"]


@pytest.mark.parametrize("placement", [Wait(), Create(), Reuse("nobody")])
async def test_a_scheduler_that_is_always_wrong_lets_no_request_hang(
    house: House, placement: Placement
) -> None:
    house.put_hello()
    house.scheduler = Contrary(placement)
    await house.open(max_instances=2)
    for _ in range(2):
        answers = await asyncio.gather(*[house.call("hello", {"name": n}) for n in "abcde"])
        assert answers == [f"Hello, {n}!" for n in "abcde"]
    assert len(house.manager.describe()) <= 2
