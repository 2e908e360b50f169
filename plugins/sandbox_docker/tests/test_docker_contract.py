"""The Docker backend keeps the contract of sandboxes."""

from __future__ import annotations

from collections.abc import AsyncIterator

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
