"""What the import cache is asked and told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from olcore.errors import HandlerLoadError, SandboxError
from olcore.interfaces import (
    ImportCache,
    ImportRecord,
    Sandbox,
    SandboxSpec,
    Wanted,
    Wheel,
    Zygote,
)
from olcore.testing.fakes import FakePool

if TYPE_CHECKING:
    from tests.handlers.conftest import House


class Stone(Zygote):
    """A zygote that is only passed on."""

    id = "stone"
    imported = ()
    missed = frozenset()
    memory_bytes = 0
    descendants = 0
    alive = True

    async def destroy(self) -> None:
        pass


class Cache(ImportCache):
    def __init__(self) -> None:
        self.zygote: Zygote | None = Stone()
        self.asked: list[str] = []
        self.observed: list[str] = []
        self.unfit: list[tuple[str, str]] = []

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def choose(self, wanted: Wanted) -> Zygote | None:
        self.asked.append(wanted.handler)
        return self.zygote

    def observe(self, wanted: Wanted, imported: Sequence[ImportRecord]) -> None:
        self.observed.append(wanted.handler)

    def failed(self, zygote: Zygote, reason: str) -> None:
        self.unfit.append((zygote.id, reason))

    async def shrink(self, want_bytes: int) -> int:
        return 0

    def describe(self) -> Sequence[dict[str, object]]:
        return ()


class Installer:
    async def prepare(self, code: Path) -> Wanted:
        wheel = Wheel(folder="six-1.0-py3", modules=frozenset({"six"}))
        return Wanted(handler=code.parent.name, wheels=(wheel,))

    async def folder(self, wanted: Wanted) -> Path:
        return Path("/somewhere/packages")

    async def compile(self, code: Path) -> None:
        pass


class Pool(FakePool):
    """Cannot fork from any zygote."""

    async def create(self, spec: SandboxSpec) -> Sandbox:
        if spec.zygote is not None:
            self.specs.append(spec)
            raise SandboxError("the zygote is stiff")
        return await super().create(spec)


@pytest.fixture
def cache(house: House) -> Cache:
    house.packages = Installer()
    house.import_cache = cache = Cache()
    return cache


async def test_an_instance_is_forked_from_the_zygote_that_the_cache_chose(
    house: House, cache: Cache
) -> None:
    house.put_hello()
    await house.open()
    await house.call("hello")
    assert house.pool.specs[0].zygote is cache.zygote
    assert (cache.asked, cache.observed, cache.unfit) == (["hello"], ["hello"], [])


async def test_a_zygote_that_cannot_be_forked_is_reported_and_the_request_goes_on(
    house: House, cache: Cache
) -> None:
    house.pool = Pool()
    house.put_hello()
    await house.open()
    assert await house.call("hello", {"name": "Bob"}) == "Hello, Bob!"
    assert cache.unfit == [("stone", "the zygote is stiff")]


async def test_a_zygote_is_not_blamed_for_a_handler_that_fails_without_it_too(
    house: House, cache: Cache
) -> None:
    house.pool = Pool()
    house.registry.put("broken", "raise RuntimeError('mine')\n")
    await house.open()
    with pytest.raises(HandlerLoadError):
        await house.call("broken")
    assert cache.unfit == []


async def test_a_handler_on_the_hosts_network_is_forked_from_no_zygote_of_the_cache(
    house: House, cache: Cache
) -> None:
    from olcore.interfaces import Network

    house.put_hello()
    await house.open(network=Network.HOST)
    await house.call("hello")
    assert cache.asked == []
