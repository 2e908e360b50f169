"""A worker that stops: what becomes of requests and instances."""

from __future__ import annotations

import asyncio

import pytest

from olcore.errors import DrainingError
from tests.handlers.conftest import Gate, House


async def test_a_frozen_instance_is_destroyed_when_the_worker_stops(house: House) -> None:
    house.put_hello()
    manager = await house.open(pause_after_ms=50)
    await house.call("hello")
    await house.until(lambda: house.told("ol_instance_paused"))
    await manager.close(0.0)
    assert await house.ended() == ["stopping"]


async def test_closing_lets_requests_in_flight_finish_and_refuses_new_ones(
    house: House, gate: Gate
) -> None:
    manager = await house.open()
    running = await gate.inside("a")
    closing = asyncio.ensure_future(manager.close(30.0))
    await house.turns()
    with pytest.raises(DrainingError):
        await gate.begin("b")
    assert not closing.done()
    assert (await gate.go("a"))[0] == "a"
    await closing
    assert running.done()


async def test_requests_that_outlast_the_drain_are_told_so(house: House, gate: Gate) -> None:
    manager = await house.open(max_instances=1)
    running = await gate.inside("a")
    waiting = gate.begin("b")
    await house.turns()
    await manager.close(0.01)
    for task in (running, waiting):
        with pytest.raises(DrainingError):
            await task


async def test_a_creation_under_way_is_given_up_when_the_worker_stops(house: House) -> None:
    house.registry.put("slow", "while True:\n    pass\n")
    manager = await house.open()
    task = house.begin("slow")
    await house.turns()
    await manager.close(0.0)
    with pytest.raises(DrainingError):
        await task
    assert manager.describe() == []


async def test_a_request_whose_code_comes_while_the_worker_stops_starts_nothing(
    house: House,
) -> None:
    house.put_hello()
    manager = await house.open()
    manager._parts.is_closing = True
    with pytest.raises(DrainingError):
        await house.call("hello")
    assert manager.describe() == []
