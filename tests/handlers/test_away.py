"""What is served while a remote registry is away or slow, how often it is asked, and who waits for it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from olcore.errors import HandlerInvalidError, HandlerNotFoundError, RegistryUnavailableError
from olcore.handlers.code_folder import CodeFolder
from olcore.interfaces import HandlerVersion
from olcore.testing.fakes import FakeRegistry

if TYPE_CHECKING:
    from tests.handlers.conftest import House

AWAY = RegistryUnavailableError("the registry is away")


class HalfRegistry(FakeRegistry):
    """Looks handlers up, but pulls as the test says."""

    def __init__(self) -> None:
        super().__init__(remote=True)
        self.fault: Exception | None = None
        self.hold: asyncio.Event | None = None
        self.lookup_hold: asyncio.Event | None = None
        self.waiting = asyncio.Event()

    async def lookup(self, name: str) -> HandlerVersion:
        version = await super().lookup(name)
        await self._wait(self.lookup_hold)
        return version

    async def pull(self, version: HandlerVersion, target: Path) -> HandlerVersion:
        await self._wait(self.hold)
        if self.fault is not None:
            raise self.fault
        return await super().pull(version, target)

    async def _wait(self, hold: asyncio.Event | None) -> None:
        if hold is not None:
            self.waiting.set()
            await hold.wait()


async def older_than_the_answer() -> None:
    """Wait longer than answers hold with ``registry_cache_ms=1``; nothing else makes them old."""
    await asyncio.sleep(0.002)


def leave_from_an_earlier_run(house: House, version: str) -> Path:
    folder = house.worker_dir.code / "hello" / version
    folder.mkdir(parents=True)
    (folder / "lambda_func.py").write_text("def handler(event):\n    return 'cached'\n")
    return folder


async def test_a_registry_that_is_away_is_asked_once_within_its_cache_time(house: House) -> None:
    house.registry = FakeRegistry(remote=True)
    leave_from_an_earlier_run(house, "v1")
    await house.open(registry_cache_ms=60_000)
    house.registry.refuse = AWAY
    assert await asyncio.gather(*(house.call("hello") for _ in range(3))) == ["cached"] * 3
    assert await house.call("hello") == "cached"
    assert house.registry.lookups == 1
    assert house.manager.stale_served == 4


async def test_an_outage_is_warned_of_once_and_its_end_is_told(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    house.registry = FakeRegistry(remote=True)
    house.put_hello()
    await house.open(registry_cache_ms=0)
    await house.call("hello")
    assert house.manager.stale_served == 0
    house.registry.refuse = AWAY
    for _ in range(3):
        await house.call("hello")
        await house.turns()
    assert caplog.text.count("serving cached version") == 1
    assert house.manager.stale_served == 3
    house.registry.refuse = None
    await house.call("hello")
    await house.turns()
    assert caplog.text.count("has answered again for 'hello'") == 1


async def test_nobody_waits_for_new_code_that_could_not_be_pulled_the_last_time(
    house: House,
) -> None:
    house.registry = registry = HalfRegistry()
    house.put_hello()
    await house.open(registry_cache_ms=1)
    await house.call("hello")
    house.put_hello("Bye")
    registry.fault = AWAY
    await older_than_the_answer()
    assert await house.call("hello", {"name": "Bob"}) == "Hello, Bob!"
    await older_than_the_answer()
    registry.fault, registry.hold = None, asyncio.Event()
    assert await house.call("hello", {"name": "Bob"}) == "Hello, Bob!"
    await registry.waiting.wait()
    assert house.manager.stale_served == 2
    registry.hold.set()
    registry.hold = None
    await house.until(lambda: len(house.told("ol_handler_pulled")) == 2)
    await house.turns()
    assert await house.call("hello", {"name": "Bob"}) == "Bye, Bob!"
    assert house.manager.stale_served == 2


async def test_a_fault_of_the_new_code_shows_when_the_registry_is_back(house: House) -> None:
    house.registry = registry = HalfRegistry()
    house.put_hello()
    await house.open(registry_cache_ms=1)
    await house.call("hello")
    house.put_hello("Bye")
    registry.fault = AWAY
    await older_than_the_answer()
    assert await house.call("hello", {"name": "Bob"}) == "Hello, Bob!"
    registry.fault = HandlerInvalidError("no bundle at all")

    async def call_until_it_fails() -> None:
        async with asyncio.timeout(20):
            while True:  # it is pulled beside the requests
                await house.call("hello")

    with pytest.raises(HandlerInvalidError, match="no bundle at all"):
        await call_until_it_fails()


async def test_a_request_waits_its_time_for_a_pull_which_goes_on(house: House) -> None:
    house.registry = registry = HalfRegistry()
    house.put_hello()
    registry.hold = asyncio.Event()
    await house.open(registry_timeout_s=0.05)
    with pytest.raises(RegistryUnavailableError, match=r"within 0.05 s") as caught:
        await house.call("hello")
    assert caught.value.retry_after_s
    registry.hold.set()
    await house.until(lambda: house.told("ol_handler_pulled"))
    assert await house.call("hello", {"name": "Bob"}) == "Hello, Bob!"
    assert registry.lookups == 1
    assert len(house.told("ol_handler_pulled")) == 1


async def test_a_lookup_that_took_the_whole_time_leaves_none_for_the_pull(house: House) -> None:
    house.registry = registry = HalfRegistry()
    house.put_hello()
    registry.hold, registry.lookup_hold = asyncio.Event(), asyncio.Event()
    await house.open(registry_timeout_s=0.05)
    slow = house.begin("hello")
    await registry.waiting.wait()
    await asyncio.sleep(0.06)  # longer than the registry has; the house has no other clock
    registry.lookup_hold.set()
    with pytest.raises(RegistryUnavailableError, match=r"within 0.05 s"):
        await slow


async def test_an_answer_is_as_old_as_its_question(house: House) -> None:
    house.registry = registry = HalfRegistry()
    house.put_hello()
    await house.open(registry_cache_ms=50)
    registry.lookup_hold = asyncio.Event()
    slow = house.begin("hello", {"name": "Bob"})
    await registry.waiting.wait()
    house.put_hello("Bye")
    await asyncio.sleep(0.06)  # longer than answers hold; nothing else makes them old
    registry.lookup_hold.set()
    # It changed before the pull, and before whoever asks now has asked.
    assert await slow == "Bye, Bob!"
    lookups = registry.lookups
    assert await house.call("hello", {"name": "Bob"}) == "Bye, Bob!"
    assert registry.lookups == lookups + 1


async def test_a_removed_handler_does_not_rise_again_when_the_registry_is_away(
    house: House,
) -> None:
    house.registry = FakeRegistry(remote=True)
    folder = leave_from_an_earlier_run(house, "v1")
    await house.open(registry_cache_ms=0)
    with pytest.raises(HandlerNotFoundError):
        await house.call("hello")
    assert not folder.exists()
    house.registry.refuse = AWAY
    leave_from_an_earlier_run(house, "v1")  # as if an instance had still used it
    with pytest.raises(RegistryUnavailableError) as caught:
        await house.call("hello")
    assert caught.value.retry_after_s


def test_the_version_found_last_is_the_newest_on_disk(tmp_path: Path) -> None:
    code = CodeFolder(tmp_path / "code")
    code.start()
    assert code.newest("hello") is None
    versions = [HandlerVersion(name="hello", version=version) for version in ("a", "b")]
    for number, version in enumerate(versions):
        (tmp_path / f"{number}").mkdir()
        code.put(version, tmp_path / f"{number}")
    assert code.find(versions[0]) == tmp_path / "code" / "hello" / "a"
    assert code.newest("hello") == "a"
    assert code.find(HandlerVersion(name="hello", version="c")) is None
