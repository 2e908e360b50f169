"""Which code is served, and what is done when the registry is slow, wrong or away."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from olcore.errors import (
    HandlerNotFoundError,
    OlcoreError,
    PackagesError,
    RegistryError,
    RegistryUnavailableError,
)
from olcore.interfaces import HandlerVersion, Wanted, Wheel
from olcore.testing.fakes import FakeRegistry

if TYPE_CHECKING:
    from tests.handlers.conftest import House


class SlowRegistry(FakeRegistry):
    """Answers when the test lets it."""

    def __init__(self, *, remote: bool = False) -> None:
        super().__init__(remote=remote)
        self.pulls = 0
        self.holds: dict[str, asyncio.Future[None]] = {}
        self.held: asyncio.Queue[str] = asyncio.Queue()

    def hold(self, what: str) -> None:
        self.holds[what] = asyncio.get_running_loop().create_future()

    def let_go(self, what: str) -> None:
        self.holds.pop(what).set_result(None)

    async def lookup(self, name: str) -> HandlerVersion:
        version = await super().lookup(name)
        await self._wait("lookup")
        return version

    async def pull(self, version: HandlerVersion, target: Path) -> HandlerVersion:
        self.pulls += 1
        await self._wait("pull")
        return await super().pull(version, target)

    async def _wait(self, what: str) -> None:
        hold = self.holds.get(what)
        if hold is not None:
            self.held.put_nowait(what)
            await hold


async def test_a_remote_registry_is_asked_once_within_its_cache_time(house: House) -> None:
    house.registry = FakeRegistry(remote=True)
    house.put_hello()
    await house.open(registry_cache_ms=60_000)
    for _ in range(3):
        await house.call("hello")
    for _ in range(3):
        with pytest.raises(HandlerNotFoundError):
            await house.call("nobody")
    assert house.registry.lookups == 2


async def test_a_local_registry_is_asked_for_every_request(house: House) -> None:
    house.put_hello()
    await house.open(registry_cache_ms=60_000)
    for _ in range(3):
        await house.call("hello")
    assert house.registry.lookups == 3


async def test_a_handler_rewritten_in_a_remote_registry_is_served_within_the_cache_time(
    house: House,
) -> None:
    house.registry = FakeRegistry(remote=True)
    house.put_hello()
    await house.open(registry_cache_ms=0)
    await house.call("hello")
    house.put_hello("Bye")
    assert await house.call("hello", {"name": "Bob"}) == "Bye, Bob!"


async def test_concurrent_requests_share_one_lookup_of_a_remote_registry(house: House) -> None:
    house.registry = registry = SlowRegistry(remote=True)
    house.put_hello()
    await house.open(registry_cache_ms=1)
    await house.call("hello")
    await asyncio.sleep(0.002)  # longer than answers hold; nothing else makes them old
    registry.hold("lookup")
    before = registry.lookups
    tasks = [house.begin("hello", {"name": "Bob"}) for _ in range(5)]
    await registry.held.get()
    registry.let_go("lookup")
    assert await asyncio.gather(*tasks) == ["Hello, Bob!"] * 5
    assert registry.lookups == before + 1


async def test_a_slow_answer_never_turns_a_handler_back_to_older_code(house: House) -> None:
    house.registry = registry = SlowRegistry()
    house.put_hello()
    await house.open()
    await house.call("hello")
    registry.hold("lookup")
    slow = house.begin("hello", {"name": "Bob"})
    await registry.held.get()
    held = registry.holds.pop("lookup")
    house.put_hello("Bye")
    assert await house.call("hello", {"name": "Bob"}) == "Bye, Bob!"
    held.set_result(None)
    assert await slow == "Bye, Bob!"


async def test_a_slow_pull_never_turns_a_handler_back_to_older_code(house: House) -> None:
    house.registry = registry = SlowRegistry()
    house.put_hello()
    await house.open()
    registry.hold("pull")
    slow = house.begin("hello", {"name": "Bob"})
    await registry.held.get()
    held = registry.holds.pop("pull")
    house.put_hello("Bye")
    assert await house.call("hello", {"name": "Bob"}) == "Bye, Bob!"
    held.set_result(None)
    assert await slow == "Bye, Bob!"


async def test_a_caller_that_goes_away_does_not_stop_the_pull_for_the_others(
    house: House,
) -> None:
    house.registry = registry = SlowRegistry()
    house.put_hello()
    await house.open()
    registry.hold("pull")
    first = house.begin("hello")
    await registry.held.get()
    second = house.begin("hello", {"name": "Bob"})
    await house.turns()
    first.cancel()
    await house.turns()
    registry.let_go("pull")
    assert await second == "Hello, Bob!"
    assert registry.pulls == 1


async def test_cached_code_is_served_while_the_registry_is_away(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.registry = FakeRegistry(remote=True)
    house.put_hello()
    await house.open(registry_cache_ms=0)
    await house.call("hello")
    house.registry.refuse = RegistryUnavailableError("the registry is away")
    assert await house.call("hello", {"name": "Bob"}) == "Hello, Bob!"
    assert "the registry is away: serving cached version" in caplog.text


async def test_while_the_registry_is_away_nobody_waits_for_it_but_the_first(
    house: House,
) -> None:
    house.registry = registry = SlowRegistry(remote=True)
    house.put_hello()
    await house.open(registry_cache_ms=1)
    await house.call("hello")
    registry.refuse = RegistryUnavailableError("the registry is away")
    await asyncio.sleep(0.002)  # longer than answers hold; nothing else makes them old
    await house.call("hello")
    await asyncio.sleep(0.002)  # as above
    registry.refuse = None
    registry.hold("lookup")
    assert await house.call("hello", {"name": "Bob"}) == "Hello, Bob!"
    await registry.held.get()
    house.put_hello("Bye")
    registry.let_go("lookup")
    await house.turns()
    await asyncio.sleep(0.002)
    assert await house.call("hello", {"name": "Bob"}) == "Bye, Bob!"


async def test_code_of_an_earlier_run_is_served_while_the_registry_is_away(house: House) -> None:
    version = house.put_hello()
    folder = house.worker_dir.code / "hello" / version
    folder.mkdir(parents=True)
    (folder / "lambda_func.py").write_text("def handler(event):\n    return 'cached'\n")
    await house.open()
    house.registry.refuse = RegistryUnavailableError("the registry is away")
    assert await house.call("hello") == "cached"


async def test_without_cached_code_the_caller_is_told_when_to_come_back(house: House) -> None:
    await house.open()
    house.registry.refuse = RegistryUnavailableError("the registry is away")
    with pytest.raises(RegistryUnavailableError) as caught:
        await house.call("hello")
    assert caught.value.retry_after_s == 5.0


async def test_a_version_that_is_no_name_of_a_folder_reaches_no_path(house: House) -> None:
    class Wrong(FakeRegistry):
        async def lookup(self, name: str) -> HandlerVersion:
            return HandlerVersion(name=name, version="../../evil")

    house.registry = Wrong()
    await house.open()
    with pytest.raises(RegistryError, match=r"'../../evil'"):
        await house.call("hello")


async def test_a_pull_that_fails_leaves_nothing_and_is_tried_again(house: House) -> None:
    class Failing(FakeRegistry):
        fails = True

        async def pull(self, version: HandlerVersion, target: Path) -> HandlerVersion:
            if self.fails:
                (target / "half").write_text("a part")
                raise RegistryError("cut off")
            return await super().pull(version, target)

    house.registry = registry = Failing()
    house.put_hello()
    await house.open()
    with pytest.raises(RegistryError, match="cut off"):
        await house.call("hello")
    assert list(house.worker_dir.code.rglob("*")) == []
    registry.fails = False
    assert await house.call("hello", {"name": "Bob"}) == "Hello, Bob!"


async def test_errors_that_requests_share_carry_each_requests_own_details(house: House) -> None:
    house.registry = registry = SlowRegistry(remote=True)
    await house.open()
    registry.refuse = RegistryUnavailableError("away")
    answers = await asyncio.gather(*[house.call("hello") for _ in range(3)], return_exceptions=True)
    assert len({id(answer) for answer in answers}) == 3
    for answer in answers:
        assert isinstance(answer, OlcoreError)
        answer.details["request_id"] = id(answer)
    assert (
        len({answer.details["request_id"] for answer in answers if isinstance(answer, OlcoreError)})
        == 3
    )


class Installer:
    """Wants one wheel for every handler, and can refuse."""

    def __init__(self) -> None:
        self.refuse: PackagesError | None = None
        self.seen: list[Path] = []

    async def prepare(self, code: Path) -> Wanted:
        self.seen.append(code)
        if self.refuse is not None:
            raise self.refuse
        wheel = Wheel(folder="six-1.0-py3", modules=frozenset({"six"}))
        return Wanted(handler=code.parent.name, wheels=(wheel,))

    async def folder(self, wanted: Wanted) -> Path:
        return Path("/somewhere/packages")

    async def compile(self, code: Path) -> None:
        pass


async def test_packages_are_installed_once_for_a_version_and_named_to_the_guest(
    house: House,
) -> None:
    house.packages = installer = Installer()
    house.registry.put("path", "import sys\ndef handler(event):\n    return sys.path\n")
    await house.open(max_instances=2)
    paths, _ = await asyncio.gather(house.call("path"), house.call("path"))
    assert "/packages/six-1.0-py3" in paths
    assert len(installer.seen) == 1
    assert house.pool.specs[0].packages == Path("/somewhere/packages")


async def test_packages_that_cannot_be_installed_fail_the_request_with_the_reason(
    house: House,
) -> None:
    house.packages = installer = Installer()
    installer.refuse = PackagesError("no such package: sixx")
    house.put_hello()
    await house.open()
    with pytest.raises(PackagesError, match="sixx"):
        await house.call("hello")
    installer.refuse = None
    assert await house.call("hello", {"name": "Bob"}) == "Hello, Bob!"
