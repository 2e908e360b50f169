"""No attempt of a handler gets out of its container, or at another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import ClassVar

import pytest

from ol_sandbox_docker.pool import DockerPool
from ol_sandbox_docker.settings import DockerSettings
from olcore.interfaces import SandboxPool, WorkerContext
from olcore.testing.attacks import AttackSuite

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


class TestDockerAttacks(AttackSuite):
    exempt: ClassVar = {
        "set_up_an_io_ring": "the default filter of Docker before 25 allows io_uring",
        "take_all_asynchronous_io": "the default filter of Docker allows io_setup",
        "take_all_memory_of_tcp": "Docker sets no limit for TCP on cgroup v1",
        "reach_the_host_through_vsock": "the default filter of Docker before 25 allows AF_VSOCK",
    }

    @pytest.fixture
    async def pool(
        self, context: WorkerContext, settings: DockerSettings
    ) -> AsyncIterator[SandboxPool]:
        pool = DockerPool(context, settings)
        await pool.start()
        yield pool
        await pool.close()
