"""What the Docker backend promises beyond the contract: labels, networks, warm containers, leftovers, a lost engine."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ol_sandbox_docker import mounts, network, scratch
from ol_sandbox_docker.containers import labels, network_name
from ol_sandbox_docker.engine import Engine
from ol_sandbox_docker.pool import DockerPool, clean
from ol_sandbox_docker.settings import DockerSettings
from ol_sandbox_docker.usable import why_unusable
from olcore.errors import BackendUnusableError, SandboxError, SandboxUnavailableError
from olcore.interfaces import DeathCause, Limits, Network, SandboxPool, WorkerContext
from olcore.testing.leaks import assert_no_leaks
from olcore.testing.limits import LimitsContract
from olcore.testing.processes import is_running
from olcore.testing.rendezvous import DEADLINE_S, Rig
from olcore.testing.sandbox import ECHO, SandboxFixtures

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


class WithDocker(SandboxFixtures):
    @pytest.fixture
    async def pool(
        self, context: WorkerContext, settings: DockerSettings
    ) -> AsyncIterator[SandboxPool]:
        pool = DockerPool(context, settings)
        await pool.start()
        yield pool
        await pool.close()


class TestDockerLimits(WithDocker, LimitsContract):
    pass


class TestDockerPool(WithDocker):
    async def test_containers_are_labelled_for_status_and_kill(
        self, rig: Rig, context: WorkerContext, settings: DockerSettings
    ) -> None:
        await rig.run(ECHO)
        engine = Engine(settings.base_url, DEADLINE_S)
        (found,) = engine.containers(labels(context))
        engine.close()
        assert found["Labels"] == {
            "ol.cluster": context.cluster_name,
            "ol.worker": "worker-0",
            "ol.type": "sandbox",
            "ol.handler": "contract",
            "ol.instance": "1",
        }

    async def test_each_container_has_a_user_of_its_own(self, rig: Rig) -> None:
        source = "import os\ndef handler(event):\n    return os.getuid(), os.getgid()\n"
        users = [await (await rig.run(source)).call() for _ in range(2)]
        assert users[0] != users[1]
        assert min(min(user) for user in users) >= 1 << 30

    async def test_nothing_is_left_when_the_pool_is_closed(
        self, context: WorkerContext, settings: DockerSettings, tmp_path: Path
    ) -> None:
        with assert_no_leaks(tmp_path):
            pool = DockerPool(context, msgspec.structs.replace(settings, warm_pool=2))
            await pool.start()
            await pool.warm.full()
            (tmp_path / "rig").mkdir()
            rig = Rig(pool, tmp_path / "rig")
            await (await rig.run(ECHO, network=Network.NAT)).call()
            await (await rig.run(ECHO)).call()
            await rig.close()
            await pool.close()
        engine = Engine(settings.base_url, DEADLINE_S)
        assert engine.containers(labels(context)) == []
        assert engine.networks(labels(context)) == []
        engine.close()

    async def test_a_wrong_image_is_refused_at_the_start(
        self, context: WorkerContext, settings: DockerSettings
    ) -> None:
        pool = DockerPool(context, msgspec.structs.replace(settings, image="ol-none"))
        with pytest.raises(BackendUnusableError, match=r"no image 'ol-none'.*olcore image build"):
            await pool.start()
        await pool.close()

    async def test_an_image_without_the_interpreter_says_so(
        self, context: WorkerContext, settings: DockerSettings
    ) -> None:
        pool = DockerPool(context, msgspec.structs.replace(settings, python="python9"))
        await pool.start()
        with pytest.raises(SandboxError, match="'python9'"):
            await pool.probe()
        await pool.close()


class TestDockerNetworks(WithDocker):
    async def test_nat_has_a_way_out_and_none_to_this_host(
        self, rig: Rig, context: WorkerContext
    ) -> None:
        instance = await rig.run(
            "def handler(event):\n    return open('/proc/net/route').read()\n",
            network=Network.NAT,
        )
        routes = await instance.call()
        assert "00000000" in routes.splitlines()[1].split()[1]  # a default route
        rules = subprocess.run(["iptables-save"], check=True, capture_output=True, text=True).stdout
        bridge = network_name(context)
        assert f"-A INPUT -i {bridge} -j DROP" in rules
        assert f"! -o {bridge} -j MASQUERADE" in rules

    async def test_a_network_that_somebody_removed_is_made_again(
        self, rig: Rig, context: WorkerContext, settings: DockerSettings
    ) -> None:
        first = await rig.run(ECHO, network=Network.NAT)
        await first.sandbox.destroy()
        engine = Engine(settings.base_url, DEADLINE_S)
        assert engine.remove_network(network_name(context))
        engine.close()
        assert await (await rig.run(ECHO, network=Network.NAT)).call("again") == "again"
        rules = subprocess.run(["iptables-save"], check=True, capture_output=True, text=True).stdout
        assert rules.count(f"-A INPUT -i {network_name(context)} -j DROP") == 1

    async def test_none_has_loopback_only(self, rig: Rig) -> None:
        instance = await rig.run(
            "import socket\ndef handler(event):\n"
            "    return open('/proc/net/route').read().count('\\n')\n"
        )
        assert await instance.call() <= 1

    async def test_host_sees_the_interfaces_of_the_host(self, rig: Rig) -> None:
        import socket

        instance = await rig.run(
            "import socket\ndef handler(event):\n"
            "    return [name for _, name in socket.if_nameindex()]\n",
            network=Network.HOST,
        )
        assert set(await instance.call()) >= {name for _, name in socket.if_nameindex()} - {"x"}

    def test_a_host_that_cannot_be_closed_gets_no_network(
        self, context: WorkerContext, settings: DockerSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", "/nonexistent")
        engine = Engine(settings.base_url, DEADLINE_S)
        with pytest.raises(SandboxError, match="iptables"):
            network.make(engine, context)
        assert engine.networks(labels(context)) == []
        engine.close()


class TestWarmContainers(SandboxFixtures):
    @pytest.fixture
    async def pool(
        self, context: WorkerContext, settings: DockerSettings
    ) -> AsyncIterator[SandboxPool]:
        pool = DockerPool(context, msgspec.structs.replace(settings, warm_pool=2))
        await pool.start()
        await pool.warm.full()
        yield pool
        await pool.close()

    async def test_a_warm_container_serves_the_code_it_is_given(self, rig: Rig) -> None:
        assert isinstance(rig.pool, DockerPool)
        for number in range(4):
            await rig.pool.warm.full()
            instance = await rig.run(f"def handler(event):\n    return {number}, event\n")
            assert await instance.call("x") == [number, "x"]
            assert instance.text("stderr") == ""

    async def test_other_limits_get_a_container_of_their_own(self, rig: Rig) -> None:
        instance = await rig.run(ECHO, limits=Limits(memory_mb=64))
        assert await instance.call(1) == 1

    async def test_a_warm_container_that_somebody_removed_is_made_anew(
        self, rig: Rig, context: WorkerContext, settings: DockerSettings
    ) -> None:
        engine = Engine(settings.base_url, DEADLINE_S)
        for container in engine.containers(labels(context)):
            engine.remove(container["Id"])
        engine.close()
        for number in range(3):
            assert await (await rig.run(ECHO)).call(number) == number

    async def test_those_that_waited_when_the_engine_stopped_are_removed_when_it_is_back(
        self, rig: Rig, context: WorkerContext, settings: DockerSettings, engine: Any
    ) -> None:
        engine.stop()
        try:
            with pytest.raises(SandboxUnavailableError):
                await rig.run(ECHO)
        finally:
            engine.start()
        assert await (await rig.run(ECHO)).call("back") == "back"
        await rig.close()
        await rig.pool.close()
        client = Engine(settings.base_url, DEADLINE_S)
        assert client.containers(labels(context)) == []
        client.close()

    async def test_more_than_are_warm_works(self, rig: Rig) -> None:
        for number in range(4):
            assert await (await rig.run(ECHO)).call(number) == number


class TestLeftovers(WithDocker):
    async def test_clean_removes_what_a_dead_worker_left_and_nothing_else(
        self, context: WorkerContext, settings: DockerSettings, tmp_path: Path
    ) -> None:
        dead = DockerPool(context, settings)
        await dead.start()
        folder = context.worker_dir / "rig"
        folder.mkdir()
        rig = Rig(dead, folder)
        instance = await rig.run(ECHO, network=Network.NAT)
        await instance.sandbox.pause()
        # As after a kill -9: nobody closes the pool.
        removed = clean(context, settings)
        assert [line.split()[1] for line in removed] == [
            "the",
            "the",
            "the",
            "the",
            "the",
            str(folder / "scratch-1"),
        ]
        assert not is_running(instance.pid)
        assert clean(context, settings) == []
        assert mounts.ours(tmp_path) == set()
        await rig.close()
        await dead.close()

    async def test_clean_removes_containers_that_waited(
        self, context: WorkerContext, settings: DockerSettings, tmp_path: Path
    ) -> None:
        dead = DockerPool(context, msgspec.structs.replace(settings, warm_pool=1))
        await dead.start()
        await dead.warm.full()
        folder = context.worker_dir / "rig"
        folder.mkdir()
        rig = Rig(dead, folder)
        instance = await rig.run(ECHO)
        await dead.warm.full()
        removed = clean(context, settings)
        assert sum(line.startswith("removed the container") for line in removed) == 2
        assert not is_running(instance.pid)
        assert mounts.ours(tmp_path) == set()
        assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
        await rig.close()
        await dead.close()

    def test_clean_without_an_engine_unmounts_and_says_what_may_be_left(
        self, context: WorkerContext, tmp_path: Path
    ) -> None:
        folder = context.worker_dir / "scratch"
        scratch.make(folder, 1)
        with pytest.raises(SandboxUnavailableError, match="goes with the next 'olcore kill'"):
            clean(context, DockerSettings(base_url=f"unix://{tmp_path}/none.sock"))
        assert not folder.exists()


class TestLostEngine(WithDocker):
    async def test_the_pool_recovers_when_the_engine_is_back(self, rig: Rig, engine: Any) -> None:
        instance = await rig.run(ECHO)
        idle = await rig.run(ECHO)
        await idle.sandbox.pause()
        engine.stop()
        try:
            death = await instance.wait()
            assert death.cause in {DeathCause.LOST, DeathCause.SIGNALED}
            with pytest.raises(SandboxUnavailableError, match="does not answer"):
                await rig.run(ECHO)
            await instance.sandbox.destroy()
        finally:
            engine.start()
        assert await (await rig.run(ECHO)).call("back") == "back"

    async def test_destroying_without_an_engine_kills_all_the_same(
        self, rig: Rig, engine: Any
    ) -> None:
        instance = await rig.run(ECHO)
        engine.kill()
        try:
            assert is_running(instance.pid)
            await instance.sandbox.destroy()
            assert not is_running(instance.pid)
        finally:
            engine.start()
        assert await (await rig.run(ECHO)).call(1) == 1


class TestReasons:
    def test_a_remote_engine_cannot_map_folders(self) -> None:
        assert "Unix socket" in str(why_unusable(DockerSettings(base_url="tcp://127.0.0.1:2375")))

    def test_a_missing_socket_is_named(self, tmp_path: Path) -> None:
        said = why_unusable(DockerSettings(base_url=f"unix://{tmp_path}/none.sock"))
        assert f"no Docker engine at {tmp_path}/none.sock" in str(said)

    def test_an_unknown_runtime_is_named_with_those_there_are(
        self, settings: DockerSettings
    ) -> None:
        said = why_unusable(msgspec.structs.replace(settings, runtime="runsc"))
        assert "no runtime 'runsc'; it has: " in str(said)
        assert "runc" in str(said)

    def test_the_private_engine_can_be_used(self, settings: DockerSettings) -> None:
        assert why_unusable(settings) is None
