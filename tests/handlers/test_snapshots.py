"""Handlers that ask for a snapshot: a private zygote that has imported the handler itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from olcore.errors import HandlerLoadError
from olcore.handlers.snapshots import Snapshots
from olcore.testing.zygotes import FakeZygotePool

if TYPE_CHECKING:
    from tests.handlers.conftest import House

DEADLINE_S = 20.0

SOURCE = """
import sys, time
RAN = []
def after_fork():
    RAN.append("after_fork")
def handler(event):
    if event.get("hold"):
        time.sleep(0.3)
    return RAN
"""
WANTED = "snapshot = true\n"


@pytest.fixture
def pool(house: House, tmp_path: Path) -> FakeZygotePool:
    (tmp_path / "packages").mkdir(exist_ok=True)
    house.pool = pool = FakeZygotePool(tmp_path / "packages")
    return pool


def snapshots(house: House) -> Snapshots:
    kept = house.manager._parts.snapshots
    assert kept is not None
    return kept


async def ready(house: House, name: str = "h") -> None:
    async with asyncio.timeout(DEADLINE_S):
        while (kept := snapshots(house)._kept.get(name)) is None or kept.zygote is None:
            await asyncio.sleep(0.01)


async def made(house: House) -> None:
    """Wait until whatever is being made has been made, or has failed."""
    async with asyncio.timeout(DEADLINE_S):
        while snapshots(house)._making:
            await asyncio.sleep(0.01)


async def test_the_second_instance_is_forked_from_the_handler_as_it_was_loaded(
    house: House, pool: FakeZygotePool
) -> None:
    house.registry.put("h", {"lambda_func.py": SOURCE, "olcore.toml": WANTED})
    await house.open()
    assert await house.call("h") == []
    await ready(house)
    (zygote,) = pool.zygotes
    assert [record.module for record in zygote.imported][-1] == "lambda_func"
    answers = await asyncio.gather(*(house.call("h", {"hold": True}) for _ in range(2)))
    assert sorted(answers) == [[], ["after_fork"]]
    assert (house.worker_dir.import_cache / "snapshot-0" / "stderr").is_file()


async def test_a_handler_that_does_not_ask_gets_none(house: House, pool: FakeZygotePool) -> None:
    house.registry.put("h", {"lambda_func.py": SOURCE})
    await house.open()
    await house.call("h")
    await made(house)
    assert not pool.zygotes


async def test_a_handler_that_cannot_be_loaded_gets_none(
    house: House, pool: FakeZygotePool
) -> None:
    house.registry.put("h", {"lambda_func.py": "1 / 0\n", "olcore.toml": WANTED})
    await house.open()
    with pytest.raises(HandlerLoadError):
        await house.call("h")
    await made(house)
    assert not pool.zygotes


async def test_a_snapshot_that_cannot_be_made_hurts_no_request(
    house: House, pool: FakeZygotePool
) -> None:
    source = (
        "import sys\nif 'olguest.server' not in sys.modules:\n    raise RuntimeError\n" + SOURCE
    )
    house.registry.put("h", {"lambda_func.py": source, "olcore.toml": WANTED})
    await house.open()
    await house.call("h")
    await made(house)
    assert not pool.zygotes
    answers = await asyncio.gather(*(house.call("h", {"hold": True}) for _ in range(2)))
    assert answers == [[], []]


async def test_a_dead_snapshot_is_made_anew(house: House, pool: FakeZygotePool) -> None:
    house.registry.put("h", {"lambda_func.py": SOURCE, "olcore.toml": WANTED})
    await house.open()
    await house.call("h")
    await ready(house)
    await pool.zygotes[0].destroy()
    await asyncio.gather(*(house.call("h", {"hold": True}) for _ in range(2)))
    await ready(house)
    assert len(pool.zygotes) == 2


async def test_a_snapshot_killed_while_it_was_to_be_forked_gets_two_more_chances(
    house: House, pool: FakeZygotePool
) -> None:
    house.registry.put("h", {"lambda_func.py": SOURCE, "olcore.toml": WANTED})
    await house.open()
    await house.call("h")
    (code,) = {instance.code for instance in house.manager._handlers["h"].instances.values()}
    for count in range(1, 4):
        await ready(house)
        assert len(pool.zygotes) == count
        zygote = snapshots(house).choose(code)
        assert zygote is not None
        await zygote.destroy()
        snapshots(house).failed(code, zygote, "its parent is dead")
        snapshots(house).loaded(code, None)
        await made(house)
    assert len(pool.zygotes) == 3
    assert snapshots(house).choose(code) is None


async def test_a_snapshot_that_finds_no_room_on_disk_is_tried_again(
    house: House, pool: FakeZygotePool, caplog: pytest.LogCaptureFixture
) -> None:
    house.registry.put("h", {"lambda_func.py": SOURCE, "olcore.toml": WANTED})
    await house.open()
    folder = house.worker_dir.import_cache
    folder.touch()  # any failure of mkdir will do
    await house.call("h")
    await made(house)
    assert "no snapshot of 'h': [Errno" in caplog.text
    folder.unlink()
    await asyncio.gather(*(house.call("h", {"hold": True}) for _ in range(2)))
    await ready(house)


async def test_new_code_gets_a_new_snapshot_and_the_old_one_goes(
    house: House, pool: FakeZygotePool
) -> None:
    house.registry.put("h", {"lambda_func.py": SOURCE, "olcore.toml": WANTED})
    await house.open(registry_cache_ms=0)
    await house.call("h")
    await ready(house)
    house.registry.put("h", {"lambda_func.py": SOURCE + "# new\n", "olcore.toml": WANTED})
    await house.call("h")
    await house.ended()
    await ready(house)
    async with asyncio.timeout(DEADLINE_S):
        while pool.zygotes[0].alive:
            snapshots(house).sweep()
            await asyncio.sleep(0.01)
    assert pool.zygotes[1].alive


async def test_stopping_leaves_no_snapshot(house: House, pool: FakeZygotePool) -> None:
    house.registry.put("h", {"lambda_func.py": SOURCE, "olcore.toml": WANTED})
    await house.open()
    await house.call("h")
    await ready(house)
    await house.manager.close(0.0)
    assert not pool.zygotes[0].alive
    assert not list(house.worker_dir.import_cache.iterdir())
