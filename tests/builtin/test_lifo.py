"""The scheduler lifo, on values and a virtual clock."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from typing import Any

import pytest

from olcore.builtin.lifo import Lifo
from olcore.interfaces import Create, HandlerLoad, IdleInstance, Reject, Reuse, Wait

SCHEDULER = Lifo()


def load(**fields: Any) -> HandlerLoad:
    values: dict[str, Any] = {
        "handler": "hello",
        "now_s": 100.0,
        "idle": [],
        "busy": 0,
        "starting": 0,
        "waiting": 0,
        "max_instances": 4,
        "max_queue": 10,
        "typical_s": 0.0,
        "idle_timeout_s": 60.0,
    }
    return HandlerLoad(**{**values, **fields})


def idle(name: str, since_s: float, *, paused: bool = False) -> IdleInstance:
    return IdleInstance(name, since_s, paused)


def test_the_most_recently_used_idle_instance_is_taken_even_when_it_is_paused() -> None:
    placed = SCHEDULER.place(load(idle=[idle("1", 10.0), idle("2", 20.0, paused=True)]))
    assert placed == Reuse("2")


def test_an_instance_is_created_when_none_is_idle() -> None:
    assert SCHEDULER.place(load(busy=2, starting=1)) == Create()


def test_a_request_waits_when_max_instances_are_at_work() -> None:
    assert SCHEDULER.place(load(busy=3, starting=1)) == Wait()


def test_requests_that_wait_for_instances_on_their_way_do_not_fill_the_queue() -> None:
    assert SCHEDULER.place(load(busy=0, starting=4, waiting=4, max_queue=1)) == Wait()
    assert isinstance(SCHEDULER.place(load(starting=4, waiting=5, max_queue=1)), Reject)


def test_nobody_waits_when_the_queue_has_no_places() -> None:
    assert isinstance(SCHEDULER.place(load(busy=4, max_queue=0)), Reject)


@pytest.mark.parametrize(("typical_s", "retry_after_s"), [(0.0, 1.0), (2.0, 5.5), (1000.0, 60.0)])
def test_a_rejected_request_is_told_when_the_queue_may_have_been_served(
    typical_s: float, retry_after_s: float
) -> None:
    placed = SCHEDULER.place(load(busy=4, waiting=10, typical_s=typical_s))
    assert placed == Reject(retry_after_s)


def test_only_instances_idle_for_the_timeout_retire() -> None:
    loads = [load(idle=[idle("1", 40.0), idle("2", 40.1)]), load(idle=[idle("3", 0.0)])]
    assert SCHEDULER.retire(loads) == ["1", "3"]


def test_those_idle_for_longest_are_evicted_first_whoever_they_serve() -> None:
    loads = [load(idle=[idle("1", 10.0), idle("2", 40.0)]), load(idle=[idle("3", 20.0)])]
    assert SCHEDULER.evict(loads, 2) == ["1", "3"]
    assert SCHEDULER.evict(loads, 9) == ["1", "3", "2"]


class Simulation:
    """A worker without processes: what the core does with the scheduler's decisions, on a clock that jumps."""

    def __init__(self, *, run_s: float, cold_s: float, max_instances: int, max_queue: int) -> None:
        self.now_s = 0.0
        self.run_s = run_s
        self.cold_s = cold_s
        self.limits = {"max_instances": max_instances, "max_queue": max_queue}
        self.idle: dict[str, float] = {}
        self.busy = self.starting = self.created = self.rejected = self.most_alive = 0
        self.queue: deque[float] = deque()
        self.waited_s: list[float] = []
        self.events: list[tuple[float, int, str, str]] = []

    def load(self) -> HandlerLoad:
        views = [idle(name, since_s) for name, since_s in self.idle.items()]
        return load(
            now_s=self.now_s,
            idle=views,
            busy=self.busy,
            starting=self.starting,
            waiting=len(self.queue),
            **self.limits,
        )

    def run(self, arrivals_s: Iterable[float]) -> None:
        self.events = [(at_s, 0, "arrive", "") for at_s in arrivals_s]
        heapq.heapify(self.events)
        order = 0
        while self.events:
            self.now_s, _, what, name = heapq.heappop(self.events)
            order += 1
            if what == "arrive":
                self.arrive(order)
            else:
                if what == "ready":
                    self.starting -= 1
                else:
                    self.busy -= 1
                self.free(name, order)
            self.retire()

    def arrive(self, order: int) -> None:
        placed = SCHEDULER.place(self.load())
        if isinstance(placed, Reuse):
            self.serve(placed.instance_id, self.now_s, order)
            del self.idle[placed.instance_id]
        elif isinstance(placed, Reject):
            self.rejected += 1
        else:
            self.queue.append(self.now_s)
            if isinstance(placed, Create):
                self.created += 1
                self.starting += 1
                heapq.heappush(
                    self.events, (self.now_s + self.cold_s, order, "ready", str(self.created))
                )
        self.most_alive = max(self.most_alive, self.busy + self.starting + len(self.idle))

    def serve(self, name: str, arrived_s: float, order: int) -> None:
        self.waited_s.append(self.now_s - arrived_s)
        self.busy += 1
        heapq.heappush(self.events, (self.now_s + self.run_s, order, "done", name))

    def free(self, name: str, order: int) -> None:
        if self.queue:
            self.serve(name, self.queue.popleft(), order)
        else:
            self.idle[name] = self.now_s

    def retire(self) -> None:
        for name in SCHEDULER.retire([self.load()]):
            del self.idle[name]


def test_a_steady_trickle_is_served_by_one_instance() -> None:
    simulation = Simulation(run_s=0.5, cold_s=0.1, max_instances=8, max_queue=10)
    simulation.run([float(second) for second in range(600)])
    assert simulation.created == 1
    assert simulation.waited_s[1:] == [0.0] * 599


def test_a_burst_grows_to_max_instances_queues_and_rejects_the_rest() -> None:
    simulation = Simulation(run_s=1.0, cold_s=0.1, max_instances=4, max_queue=6)
    simulation.run([0.0] * 20)
    assert simulation.created == simulation.most_alive == 4
    assert len(simulation.waited_s) == 10
    assert simulation.rejected == 10
    assert max(simulation.waited_s) == pytest.approx(2.1)


def test_after_a_burst_all_but_those_in_use_retire() -> None:
    simulation = Simulation(run_s=0.5, cold_s=0.1, max_instances=8, max_queue=100)
    simulation.run([0.0] * 8 + [float(second) for second in range(2, 120)])
    assert simulation.created == 8
    assert len(simulation.idle) == 1


def test_no_request_waits_for_ever_whatever_arrives() -> None:
    simulation = Simulation(run_s=0.3, cold_s=2.0, max_instances=3, max_queue=50)
    simulation.run([number * 0.07 for number in range(400)])
    assert len(simulation.waited_s) + simulation.rejected == 400
    assert not simulation.queue
