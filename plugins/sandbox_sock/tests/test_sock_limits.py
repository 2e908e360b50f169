"""SOCK holds the limits that every sandbox backend holds."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ol_sandbox_sock.pool import SockPool
from ol_sandbox_sock.settings import SockSettings
from olcore.errors import SandboxDeadError
from olcore.interfaces import DeathCause, Limits, SandboxPool, WorkerContext
from olcore.testing.limits import LimitsContract
from olcore.testing.rendezvous import HungUpError, Rig

pytestmark = pytest.mark.kernel

HUNGRY_CHILD = """
import os
def handler(event):
    child = os.fork()
    if child == 0:
        kept = []
        while True:
            kept.append(bytearray(b"x") * (4 << 20))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""
EAT = """
def handler(event):
    kept = []
    while True:
        kept.append(bytearray(b"x") * (4 << 20))
"""


class TestSockLimits(LimitsContract):
    @pytest.fixture
    async def pool(self, context: WorkerContext) -> AsyncIterator[SandboxPool]:
        pool = SockPool(context, SockSettings())
        await pool.start()
        yield pool
        await pool.close()

    async def test_one_that_is_destroyed_is_not_said_to_be_out_of_memory_for_what_a_child_was(
        self, rig: Rig
    ) -> None:
        instance = await rig.run(HUNGRY_CHILD, limits=Limits(memory_mb=96))
        assert await instance.call() == -9
        await instance.sandbox.destroy()
        assert (await instance.wait()).cause is DeathCause.DESTROYED

    async def test_who_asks_at_once_or_later_hears_the_same_reason(self, rig: Rig) -> None:
        instance = await rig.run(EAT, limits=Limits(memory_mb=96))
        with pytest.raises(HungUpError):
            await instance.call()
        # Destroyed at the first sign of its end, as a worker does: it was dying of its own by then.
        await instance.sandbox.destroy()
        assert (await instance.wait()).cause is DeathCause.OUT_OF_MEMORY
        with pytest.raises(SandboxDeadError, match="over its limit of 96 MiB"):
            await instance.sandbox.usage()
