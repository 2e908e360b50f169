"""SOCK's package zygotes keep the contract that an import cache relies on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ol_sandbox_sock.pool import SockPool
from ol_sandbox_sock.settings import SockSettings
from olcore.interfaces import SandboxPool, WorkerContext
from olcore.testing.zygotes import ZygoteContract

pytestmark = pytest.mark.kernel


class TestSockZygotes(ZygoteContract):
    @pytest.fixture
    async def pool(self, context: WorkerContext) -> AsyncIterator[SandboxPool]:
        pool = SockPool(context, SockSettings())
        await pool.start()
        yield pool
        await pool.close()
