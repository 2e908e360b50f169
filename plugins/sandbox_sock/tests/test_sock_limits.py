"""SOCK holds the limits that every sandbox backend holds."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ol_sandbox_sock.pool import SockPool
from ol_sandbox_sock.settings import SockSettings
from olcore.interfaces import SandboxPool, WorkerContext
from olcore.testing.limits import LimitsContract

pytestmark = pytest.mark.kernel


class TestSockLimits(LimitsContract):
    @pytest.fixture
    async def pool(self, context: WorkerContext) -> AsyncIterator[SandboxPool]:
        pool = SockPool(context, SockSettings())
        await pool.start()
        yield pool
        await pool.close()
