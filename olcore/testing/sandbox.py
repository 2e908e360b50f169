"""The contract of a sandbox backend as a test class: a backend that passes it works with the core.

A backend's own tests subclass it, give it a started pool, and say what the backend cannot do::

    class TestDockerContract(SandboxContract):
        @pytest.fixture
        async def pool(self, context):
            pool = DockerPool(context, Settings())
            await pool.start()
            yield pool
            await pool.close()

An exemption is one line with its reason. What needs the kernel's limits is in limits.py, what a handler must not be able
to do in attacks.py.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from olcore.errors import SandboxDeadError, SandboxError
from olcore.interfaces import DeathCause, Limits, Network, SandboxPool, WorkerContext
from olcore.testing.processes import descendants, is_running
from olcore.testing.rendezvous import GuestError, HungUpError, Rig

ECHO = "def handler(event):\n    return event\n"

_COUNTER = """
import threading, time
count = 0
def turn(path):
    global count
    while True:
        count += 1
        with open(path, "w") as file:
            file.write(str(count))
        time.sleep(0.001)
def handler(event):
    if not count:
        threading.Thread(target=turn, args=(event + "/count",), daemon=True).start()
    begun = count
    while count < begun + 5:
        time.sleep(0.001)
    return count
"""

_TREE = """
import subprocess, sys
def handler(event):
    children = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=event)
                for _ in range(3)]
    return len(children)
"""


class SandboxFixtures:
    """The fixtures that every suite over sandboxes builds on; a backend overrides ``pool``."""

    isolated = True
    """Whether the sandbox maps its folders to /host and /handler and keeps the handler from the machine."""

    @pytest.fixture
    def context(self, tmp_path: Path) -> WorkerContext:
        """A worker to make a pool for."""
        folders = {name: tmp_path / name for name in ("worker", "base", "packages")}
        for folder in folders.values():
            folder.mkdir()
        return WorkerContext(
            cluster_name=str(tmp_path),
            worker_name="worker-0",
            worker_dir=folders["worker"],
            base_dir=folders["base"],
            packages_dir=folders["packages"],
            limits=Limits(),
            network=Network.NONE,
        )

    @pytest.fixture
    def pool(self) -> SandboxPool:
        """The pool under test, started; close it afterwards."""
        raise NotImplementedError("a backend's tests override the fixture 'pool'")

    @pytest.fixture(autouse=True)
    def worker_secret(self, monkeypatch: pytest.MonkeyPatch) -> str:
        """Give this process, which stands for the worker, a secret; autouse, so that it is there before the pool."""
        secret = secrets.token_hex(16)
        monkeypatch.setenv("OL_CONTRACT_SECRET", secret)
        return secret

    @pytest.fixture
    async def rig(self, pool: SandboxPool, tmp_path: Path) -> AsyncIterator[Rig]:
        """Starts sandboxes, and clears them away."""
        folder = tmp_path / "rig"
        folder.mkdir()
        rig = Rig(pool, folder, isolated=self.isolated)
        yield rig
        await rig.close()


class BareSandboxContract(SandboxFixtures):
    """What holds even where nothing is kept apart, as in a sandbox for tests; real ones pass SandboxContract."""

    async def test_the_guest_says_hello_and_answers(self, rig: Rig) -> None:
        instance = await rig.run(ECHO)
        assert instance.hello["protocol"] == 1
        assert await instance.call({"name": "Alice", "n": [1, 2.5, None]}) == {
            "name": "Alice",
            "n": [1, 2.5, None],
        }

    async def test_probe_says_what_the_guest_says(self, rig: Rig) -> None:
        info = await rig.pool.probe()
        instance = await rig.run(ECHO)
        said = (info.python, info.implementation, info.machine, info.libc)
        assert said == tuple(
            instance.hello[key] for key in ("python", "implementation", "machine", "libc")
        )

    async def test_the_peer_is_a_process_that_the_host_can_name(self, rig: Rig) -> None:
        instance = await rig.run(ECHO)
        assert instance.pid != os.getpid()
        assert Path(f"/proc/{instance.pid}").exists()

    async def test_output_lands_in_the_files_of_the_scratch_folder(self, rig: Rig) -> None:
        instance = await rig.run(
            "import sys, os\n"
            "def handler(event):\n"
            "    print('printed')\n"
            "    print('complained', file=sys.stderr)\n"
            "    os.write(1, b'written\\n')\n"
        )
        await instance.call()
        assert sorted(instance.text("stdout").split()) == ["printed", "written"]
        assert "complained" in instance.text("stderr")

    async def test_the_scratch_folder_is_shared_with_the_host(self, rig: Rig) -> None:
        instance = await rig.run(
            "def handler(event):\n    open(event + '/made', 'w').write('inside')\n"
        )
        await instance.call(instance.host)
        assert instance.text("made") == "inside"

    async def test_the_scratch_folder_is_open_to_all_and_sticky(self, rig: Rig) -> None:
        spec = rig.spec(ECHO)
        await rig.pool.make_scratch(spec.scratch, spec.limits)
        status = spec.scratch.stat()
        await rig.pool.remove_scratch(spec.scratch)
        assert stat.S_IMODE(status.st_mode) == 0o1777
        assert status.st_uid == os.geteuid()

    async def test_remove_scratch_follows_no_link_and_can_be_repeated(self, rig: Rig) -> None:
        victim = rig.folder / "victim"
        victim.mkdir()
        (victim / "precious").write_text("kept")
        instance = await rig.run(
            "import os\n"
            "def handler(event):\n"
            "    os.symlink(event['victim'], event['host'] + '/folder')\n"
            "    os.symlink(event['victim'] + '/precious', event['host'] + '/file')\n"
            "    os.makedirs(event['host'] + '/deep/er')\n"
            "    os.mkfifo(event['host'] + '/deep/fifo')\n"
        )
        await instance.call({"victim": str(victim), "host": instance.host})
        await instance.sandbox.destroy()
        await rig.pool.remove_scratch(instance.spec.scratch)
        await rig.pool.remove_scratch(instance.spec.scratch)
        assert not instance.spec.scratch.exists()
        assert (victim / "precious").read_text() == "kept"

    async def test_the_handler_gets_its_own_environment_only(
        self, rig: Rig, worker_secret: str
    ) -> None:
        instance = await rig.run(
            "import os\n"
            "def handler(event):\n"
            "    started_with = open('/proc/self/environ').read()\n"
            "    return dict(os.environ), started_with\n",
            environment={"GREETING": "hello"},
        )
        environment, started_with = await instance.call()
        assert environment["GREETING"] == "hello"
        assert "OL_CONTRACT_SECRET" not in environment
        assert worker_secret not in started_with

    async def test_a_handler_that_raises_can_be_called_again(self, rig: Rig) -> None:
        instance = await rig.run("def handler(event):\n    return 1 / event\n")
        with pytest.raises(GuestError, match="division by zero"):
            await instance.call(0)
        assert await instance.call(2) == 0.5

    async def test_code_that_cannot_be_imported_says_why(self, rig: Rig) -> None:
        with pytest.raises(GuestError, match="no_such_module"):
            await rig.run("import no_such_module\n")

    async def test_wait_tells_the_exit_code(self, rig: Rig) -> None:
        instance = await rig.run("import os\ndef handler(event):\n    os._exit(event)\n")
        with pytest.raises(HungUpError):
            await instance.call(7)
        death = await instance.wait()
        assert (death.cause, death.exit_code) == (DeathCause.EXITED, 7)
        assert await instance.wait() == death

    async def test_wait_tells_the_signal(self, rig: Rig) -> None:
        instance = await rig.run("import ctypes\ndef handler(event):\n    ctypes.string_at(0)\n")
        with pytest.raises(HungUpError):
            await instance.call()
        death = await instance.wait()
        assert (death.cause, death.signal) == (DeathCause.SIGNALED, "SIGSEGV")

    async def test_every_waiter_hears_of_the_death(self, rig: Rig) -> None:
        instance = await rig.run(ECHO)
        waiting = [asyncio.ensure_future(instance.wait()) for _ in range(3)]
        await instance.sandbox.destroy()
        deaths = await asyncio.gather(*waiting)
        assert {death.cause for death in deaths} == {DeathCause.DESTROYED}

    async def test_a_waiter_that_gives_up_does_not_disturb_the_others(self, rig: Rig) -> None:
        instance = await rig.run(ECHO)
        impatient = asyncio.ensure_future(instance.wait())
        patient = asyncio.ensure_future(instance.wait())
        await instance.call()
        impatient.cancel()
        with suppress(asyncio.CancelledError):
            await impatient
        await instance.sandbox.destroy()
        assert (await patient).cause is DeathCause.DESTROYED

    async def test_destroy_can_be_repeated_and_leaves_no_process(self, rig: Rig) -> None:
        instance = await rig.run(_TREE)
        assert await instance.call(False) == 3
        pids = descendants(instance.pid)
        assert len(pids) == 3
        await instance.sandbox.destroy()
        await instance.sandbox.destroy()
        assert [pid for pid in (instance.pid, *pids) if is_running(pid)] == []

    async def test_after_death_every_call_says_how_it_died(self, rig: Rig) -> None:
        instance = await rig.run("import os\ndef handler(event):\n    os._exit(3)\n")
        with pytest.raises(HungUpError):
            await instance.call()
        await instance.wait()
        for method in ("pause", "resume", "usage"):
            with pytest.raises(SandboxDeadError, match="exited with code 3"):
                await getattr(instance.sandbox, method)()
        await instance.sandbox.destroy()

    async def test_a_paused_sandbox_stands_still_until_it_is_resumed(self, rig: Rig) -> None:
        instance = await rig.run(_COUNTER)
        first = await instance.call(instance.host)
        await instance.sandbox.pause()
        await instance.sandbox.pause()
        before = instance.text("count")
        # Starting another one takes a while, in which a counter that runs would count.
        assert await (await rig.run(ECHO)).call(1) == 1
        assert instance.text("count") == before
        await instance.sandbox.resume()
        await instance.sandbox.resume()
        assert await instance.call(instance.host) > first

    async def test_a_paused_sandbox_can_be_measured_and_destroyed(self, rig: Rig) -> None:
        instance = await rig.run(ECHO)
        await instance.sandbox.pause()
        assert (await instance.sandbox.usage()).processes >= 1
        await instance.sandbox.destroy()
        assert not is_running(instance.pid)

    async def test_a_resumed_sandbox_answers(self, rig: Rig) -> None:
        instance = await rig.run(ECHO)
        await instance.sandbox.pause()
        await instance.sandbox.resume()
        assert await instance.call("again") == "again"

    async def test_usage_grows_with_what_the_handler_uses(self, rig: Rig) -> None:
        instance = await rig.run(
            "import time\n"
            "kept = []\n"
            "def handler(event):\n"
            "    kept.append(bytearray(b'x') * (32 << 20))\n"
            "    until = time.process_time() + 0.1\n"
            "    while time.process_time() < until: pass\n"
        )
        before = await instance.sandbox.usage()
        await instance.call()
        after = await instance.sandbox.usage()
        assert after.memory_bytes - before.memory_bytes > 24 << 20
        assert after.cpu_s - before.cpu_s > 0.05
        assert after.processes >= 1

    async def test_a_failed_create_leaves_nothing(self, rig: Rig) -> None:
        spec = rig.spec(ECHO)
        missing = rig.folder / "missing"
        await rig.pool.make_scratch(spec.scratch, spec.limits)
        before = descendants(os.getpid())
        with pytest.raises(SandboxError):
            await rig.pool.create(rig.spec(ECHO, code=missing, scratch=spec.scratch))
        assert descendants(os.getpid()) - before == set()
        assert not missing.exists()
        await rig.pool.remove_scratch(spec.scratch)
        assert await (await rig.run(ECHO)).call(1) == 1

    async def test_several_start_at_once_and_do_not_mix(self, rig: Rig) -> None:
        instances = await asyncio.gather(
            *(rig.run(f"def handler(event):\n    return {n}, event\n") for n in range(4))
        )
        answers = await asyncio.gather(*(i.call(n) for n, i in enumerate(instances)))
        assert answers == [[n, n] for n in range(4)]
        assert len({instance.pid for instance in instances}) == 4

    async def test_two_sandboxes_share_no_memory_of_the_code(self, rig: Rig) -> None:
        source = (
            "calls = 0\ndef handler(event):\n    global calls\n    calls += 1\n    return calls\n"
        )
        first, second = await rig.run(source), await rig.run(source)
        assert [await first.call(), await first.call(), await second.call()] == [1, 2, 1]

    async def test_close_destroys_what_is_left_and_can_be_repeated(self, rig: Rig) -> None:
        instance = await rig.run(ECHO)
        await rig.pool.close()
        await rig.pool.close()
        assert (await instance.wait()).cause in {DeathCause.DESTROYED, DeathCause.LOST}
        assert not is_running(instance.pid)


class SandboxContract(BareSandboxContract):
    """What the core relies on, whatever the backend."""

    async def test_code_cannot_be_written(self, rig: Rig) -> None:
        instance = await rig.run(
            "def handler(event):\n"
            "    try:\n"
            "        open('/handler/lambda_func.py', 'a')\n"
            "    except OSError as error:\n"
            "        return type(error).__name__\n"
        )
        assert await instance.call() in {"PermissionError", "OSError"}

    async def test_tmp_is_private_and_empty(self, rig: Rig) -> None:
        source = (
            "import os\n"
            "def handler(event):\n"
            "    found = os.listdir('/tmp') + os.listdir('/dev/shm')\n"
            "    open('/tmp/mine', 'w').close()\n"
            "    open('/dev/shm/mine', 'w').close()\n"
            "    return found\n"
        )
        first, second = await rig.run(source), await rig.run(source)
        assert await first.call() == []
        assert await second.call() == []
        assert len(await first.call()) == 2

    async def test_packages_are_mapped_and_read_only(self, rig: Rig) -> None:
        packages = rig.folder / "packages"
        (packages / "greeting-1-any").mkdir(parents=True)
        (packages / "greeting-1-any" / "greeting.py").write_text("word = 'hello'\n")
        instance = await rig.run(
            "import greeting\n"
            "def handler(event):\n"
            "    try:\n"
            "        open('/packages/new', 'w')\n"
            "    except OSError:\n"
            "        return greeting.word\n",
            packages=packages,
            sys_path=("/packages/greeting-1-any",),
        )
        assert await instance.call() == "hello"

    async def test_children_that_left_the_session_die_too(self, rig: Rig) -> None:
        instance = await rig.run(_TREE)
        assert await instance.call(True) == 3
        pids = descendants(instance.pid)
        await instance.sandbox.destroy()
        assert [pid for pid in pids if is_running(pid)] == []
