"""SOCK keeps the contract that every sandbox backend keeps, and what it promises beyond."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ol_sandbox_sock.pool import SockPool
from ol_sandbox_sock.settings import SockSettings
from olcore.interfaces import SandboxPool, WorkerContext
from olcore.testing.sandbox import SandboxContract

pytestmark = pytest.mark.kernel


class TestSockContract(SandboxContract):
    @pytest.fixture
    async def pool(self, context: WorkerContext) -> AsyncIterator[SandboxPool]:
        pool = SockPool(context, SockSettings())
        await pool.start()
        yield pool
        await pool.close()
