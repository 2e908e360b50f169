"""The Docker backend keeps the contract of sandboxes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from ol_sandbox_docker.pool import DockerPool
from ol_sandbox_docker.settings import DockerSettings
from olcore.interfaces import SandboxPool, WorkerContext
from olcore.testing.sandbox import SandboxContract

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


class TestDockerContract(SandboxContract):
    @pytest.fixture
    async def pool(
        self, context: WorkerContext, settings: DockerSettings
    ) -> AsyncIterator[SandboxPool]:
        pool = DockerPool(context, settings)
        await pool.start()
        yield pool
        await pool.close()


class TestWarmContract(SandboxContract):
    """The same with containers that were started before anybody knew what for."""

    @pytest.fixture
    async def pool(
        self, context: WorkerContext, settings: DockerSettings
    ) -> AsyncIterator[SandboxPool]:
        pool = DockerPool(context, msgspec.structs.replace(settings, warm_pool=1))
        await pool.start()
        await pool.warm.full()
        yield pool
        await pool.close()
