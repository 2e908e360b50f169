"""Everything at once: callers that go away, instances that die, code that changes, memory that is short."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from olcore.errors import OlcoreError
from olcore.interfaces import Limits

if TYPE_CHECKING:
    from tests.handlers.conftest import House

SOURCE = """
import os, time
def handler(event):
    if event["what"] == "die":
        os._exit(1)
    if event["what"] == "raise":
        raise ValueError("no")
    if event["what"] == "sleep":
        time.sleep(0.02)
    if event["what"] == "late":
        time.sleep(5)
    return [VERSION, event["number"]]
VERSION = 1
"""


async def one(house: House, dice: random.Random, number: int) -> None:
    what = dice.choice(["", "", "", "sleep", "raise", "die", "late", "cancel", "change"])
    name = dice.choice(["one", "two", "three"])
    if what == "change":
        house.registry.put(name, SOURCE.replace("= 1", f"= {number}"))
    task = house.begin(name, {"what": "sleep" if what == "cancel" else what, "number": number})
    if what == "cancel":
        for _ in range(dice.randrange(30)):
            await asyncio.sleep(0)
        task.cancel()
    answer: Any = (await asyncio.gather(task, return_exceptions=True))[0]
    if isinstance(answer, BaseException):
        assert isinstance(answer, OlcoreError | asyncio.CancelledError), answer
    else:
        assert answer[1] == number, "an answer reached another caller"


@pytest.mark.slow
async def test_whatever_happens_every_caller_is_answered_and_the_books_balance(
    house: House,
) -> None:
    dice = random.Random(7)
    for name in ("one", "two", "three"):
        house.registry.put(name, SOURCE)
    manager = await house.open(
        max_instances=3,
        max_queue=50,
        pause_after_ms=50,
        limits=Limits(memory_mb=100, timeout_s=0.3),
        memory_pool_mb=500,
    )
    for batch in range(6):
        async with asyncio.timeout(30):
            await asyncio.gather(*[one(house, dice, batch * 100 + n) for n in range(25)])
    await manager._parts.settle()
    for handler in manager._handlers.values():
        assert (handler._busy, handler._starting, len(handler._queue)) == (0, 0, 0)
        assert list(handler.idle) == [view.id for view in handler._views]
        assert set(handler.instances) == set(handler.idle)
    alive = len(manager.describe())
    memory = manager._parts.memory
    assert (memory.used_mb, memory.freeing_mb, memory.is_waiting) == (alive * 100, 0, False)
    assert len(house.told("ol_invocation_finished")) == 150
    assert len(house.told("ol_instance_destroyed")) == len(house.pool.specs) - alive
