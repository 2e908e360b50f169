"""SOCK's package zygotes keep the contract that an import cache relies on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ol_sandbox_sock.pool import SockPool
from ol_sandbox_sock.settings import SockSettings
from olcore.interfaces import SandboxPool, WorkerContext, ZygotePool, ZygoteSpec
from olcore.testing.rendezvous import Rig
from olcore.testing.zygotes import ZygoteContract

pytestmark = pytest.mark.kernel


class TestSockZygotes(ZygoteContract):
    @pytest.fixture
    async def pool(self, context: WorkerContext) -> AsyncIterator[SandboxPool]:
        pool = SockPool(context, SockSettings())
        await pool.start()
        yield pool
        await pool.close()

    async def test_two_instances_of_a_snapshot_share_its_set_up_and_nothing_random(
        self, pool: ZygotePool, context: WorkerContext, rig: Rig
    ) -> None:
        source = (
            "import os, random, tempfile, uuid\n"
            "SET_UP = uuid.uuid4().hex\n"
            "WHERE = os.getcwd()\n"
            "SECRET = os.environ.get('SECRET')\n"
            "def handler(event):\n"
            "    drawn = [random.random(), uuid.uuid4().hex, uuid.uuid1().hex, tempfile.mktemp()]\n"
            "    return [SET_UP, WHERE, SECRET], drawn\n"
        )
        spec = rig.spec(source)
        folder = context.worker_dir / "snapshot"
        folder.mkdir()
        zygote = await pool.create_zygote(
            ZygoteSpec(
                id="snapshot",
                folder=folder,
                sys_path=["/handler"],
                imports=["lambda_func"],
                code=spec.code,
                environment={"SECRET": "shared"},
            ),
            None,
        )
        answers = []
        for _ in range(3):
            instance = await rig.run(source, zygote=zygote)
            answers.append(await instance.call())
        assert {tuple(same) for same, _ in answers} == {(answers[0][0][0], "/handler", "shared")}
        for drawn in zip(*(drawn for _, drawn in answers), strict=True):
            assert len(set(drawn)) == len(answers)
