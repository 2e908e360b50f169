"""Every attempt to get out of a SOCK sandbox, or to disturb another one, fails in its expected way."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ol_sandbox_sock.pool import SockPool
from ol_sandbox_sock.settings import SockSettings
from olcore.interfaces import SandboxPool, WorkerContext
from olcore.testing.attacks import AttackSuite

pytestmark = pytest.mark.kernel


class TestSockAttacks(AttackSuite):
    @pytest.fixture
    async def pool(self, context: WorkerContext) -> AsyncIterator[SandboxPool]:
        pool = SockPool(context, SockSettings(stem_cells=0))
        await pool.start()
        yield pool
        await pool.close()
