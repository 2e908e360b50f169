"""The fake pool with zygotes keeps the contract that real ones keep."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from olcore.interfaces import WorkerContext
from olcore.testing.zygotes import FakeZygotePool, ZygoteContract


class TestFakeZygotes(ZygoteContract):
    isolated = False

    @pytest.fixture
    async def pool(self, context: WorkerContext) -> AsyncIterator[FakeZygotePool]:
        pool = FakeZygotePool(context.packages_dir)
        await pool.start()
        yield pool
        await pool.close()
