"""SOCK's package zygotes keep the contract that an import cache relies on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ol_sandbox_sock.pool import SockPool
from ol_sandbox_sock.settings import SockSettings
from olcore.errors import SandboxError
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

    @pytest.mark.parametrize(
        ("start", "told"),
        [
            ("threading.Thread(target=wait, daemon=True, name='ticker').start()", "ticker"),
            ("_thread.start_new_thread(wait, ())", "a thread without a name"),
        ],
    )
    async def test_imports_that_start_a_thread_of_python_are_refused(
        self, pool: ZygotePool, context: WorkerContext, start: str, told: str
    ) -> None:
        folder = context.packages_dir / "busy-1"
        folder.mkdir()
        (folder / "busy.py").write_text(
            f"import _thread, threading\ndef wait():\n    threading.Event().wait()\n{start}\n"
        )
        with pytest.raises(SandboxError, match=told):
            await pool.create_zygote(self.spec(context, "busy-1", imports=("busy",)), None)

    async def test_imports_whose_threads_have_ended_are_welcome(
        self, pool: ZygotePool, context: WorkerContext
    ) -> None:
        folder = context.packages_dir / "brief-1"
        folder.mkdir()
        (folder / "brief.py").write_text(
            "import threading\nfor _ in range(20):\n"
            "    one = threading.Thread(target=int)\n    one.start()\n    one.join()\n"
        )
        spec = self.spec(context, "brief-1", imports=("brief",))
        parent = await pool.create_zygote(spec, None)
        child = self.spec(context, "base-1", "brief-1", imports=("base",))
        assert (await pool.create_zygote(child, parent)).alive

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
