"""The fakes, held to the contracts of what they stand for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from olcore.errors import HandlerNotFoundError, SandboxUnavailableError
from olcore.interfaces import SandboxPool
from olcore.testing.fakes import FakePool, FakeRegistry
from olcore.testing.rendezvous import Rig
from olcore.testing.sandbox import ECHO, BareSandboxContract


class TestFakeContract(BareSandboxContract):
    isolated = False  # plain processes of this user

    @pytest.fixture
    async def pool(self) -> AsyncIterator[SandboxPool]:
        pool = FakePool()
        await pool.start()
        yield pool
        await pool.close()

    async def test_a_pool_that_refuses_raises_what_it_was_given(self, rig: Rig) -> None:
        assert isinstance(rig.pool, FakePool)
        rig.pool.refuse = SandboxUnavailableError("the engine is away")
        with pytest.raises(SandboxUnavailableError, match="away"):
            await rig.run(ECHO)
        rig.pool.refuse = None
        assert await (await rig.run(ECHO)).call(1) == 1


async def test_a_changed_handler_is_a_new_version(tmp_path: Path) -> None:
    registry = FakeRegistry()
    first = registry.put("hello", ECHO)
    assert registry.put("hello", ECHO) == first
    second = registry.put("hello", {"lambda_func.py": ECHO, "data/x.txt": "x"})
    assert second != first
    assert await registry.lookup("hello") == second
    assert await registry.pull(first, tmp_path) == second
    assert (tmp_path / "data" / "x.txt").read_text() == "x"
    assert await registry.names() == [second]


async def test_a_dropped_handler_is_not_found() -> None:
    registry = FakeRegistry()
    registry.put("hello", ECHO)
    registry.drop("hello")
    with pytest.raises(HandlerNotFoundError, match="'hello'"):
        await registry.lookup("hello")
