"""What SOCK promises beyond the contract: limits, uids, networks, and nothing left when something is killed."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ol_sandbox_sock import mounts
from ol_sandbox_sock.pool import SockPool, clean
from ol_sandbox_sock.settings import SockSettings
from olcore.errors import SandboxDeadError
from olcore.interfaces import DeathCause, Limits, Network, SandboxPool, WorkerContext
from olcore.testing.leaks import assert_no_leaks
from olcore.testing.processes import descendants
from olcore.testing.rendezvous import GuestError, HungUpError, Rig
from olcore.testing.sandbox import ECHO, SandboxFixtures

pytestmark = pytest.mark.kernel

DEADLINE_S = 20.0

EAT = """
def handler(event):
    kept = []
    while True:
        kept.append(b"x" * (1 << 20))
"""

FEED_A_CHILD = """
import subprocess, sys
def handler(event):
    hungry = "kept = []\\nwhile True: kept.append(b'x' * (1 << 20))"
    return subprocess.run([sys.executable, "-S", "-c", hungry]).returncode
"""

FORK = """
import os, time
def handler(event):
    count = 0
    try:
        while True:
            if os.fork() == 0:
                time.sleep(600)
            count += 1
    except OSError as error:
        return [count, error.errno]
"""

FILL = """
import errno
def handler(event):
    written = 0
    try:
        with open(event + "/big", "wb", buffering=0) as file:
            while True:
                written += file.write(b"x" * (1 << 20))
    except OSError as error:
        return [written >> 20, error.errno == errno.ENOSPC]
"""

MANY_FILES = """
def handler(event):
    count = 0
    try:
        while True:
            open(f"{event}/{count}", "w").close()
            count += 1
    except OSError:
        return count
"""


class Pooled(SandboxFixtures):
    """A SOCK pool for each test, and nothing left after it."""

    settings = SockSettings()

    @pytest.fixture
    async def pool(self, context: WorkerContext, tmp_path: Path) -> AsyncIterator[SandboxPool]:
        with assert_no_leaks(tmp_path):
            pool = SockPool(context, self.settings)
            await pool.start()
            yield pool
            await pool.close()


async def gone(pids: set[int]) -> None:
    """Wait until none of these processes is there any more."""
    async with asyncio.timeout(DEADLINE_S):
        for pid in pids:
            try:
                fd = os.pidfd_open(pid)
            except OSError:  # gone; older kernels say EINVAL of one that is just ending
                continue
            try:
                ended = asyncio.Event()
                asyncio.get_running_loop().add_reader(fd, ended.set)
                await ended.wait()
            finally:
                asyncio.get_running_loop().remove_reader(fd)
                os.close(fd)


class TestLimits(Pooled):
    async def test_over_memory_the_instance_dies_and_says_so(self, rig: Rig) -> None:
        instance = await rig.run(EAT, limits=Limits(memory_mb=64))
        with pytest.raises(HungUpError):
            await instance.call()
        death = await instance.wait()
        assert death.cause is DeathCause.OUT_OF_MEMORY
        assert str(death) == "out of memory: over its limit of 64 MiB"

    async def test_a_child_that_is_out_of_memory_does_not_take_the_others_down(
        self, rig: Rig
    ) -> None:
        instance = await rig.run(FEED_A_CHILD, limits=Limits(memory_mb=64))
        assert await instance.call() == -signal.SIGKILL
        assert await instance.call() == -signal.SIGKILL

    async def test_processes_are_bounded(self, rig: Rig) -> None:
        instance = await rig.run(FORK, limits=Limits(max_processes=10))
        count, _errno = await instance.call()
        assert count < 10

    @pytest.mark.parametrize(
        ("folder", "limits"),
        [
            ("/host", Limits(scratch_mb=8)),
            ("/tmp", Limits(tmp_mb=8)),
            ("/dev/shm", Limits(tmp_mb=8)),
        ],
    )
    async def test_what_can_be_written_is_bounded(
        self, rig: Rig, folder: str, limits: Limits
    ) -> None:
        instance = await rig.run(FILL, limits=limits)
        written_mb, was_full = await instance.call(folder)
        assert was_full
        assert written_mb <= 8

    async def test_empty_files_are_bounded_too(self, rig: Rig) -> None:
        instance = await rig.run(MANY_FILES, limits=Limits(scratch_mb=8))
        assert await instance.call("/host") < 1000

    async def test_what_is_written_counts_as_memory(self, rig: Rig) -> None:
        instance = await rig.run(FILL, limits=Limits(memory_mb=64, scratch_mb=512))
        with pytest.raises(HungUpError):
            await instance.call("/host")
        assert (await instance.wait()).cause is DeathCause.OUT_OF_MEMORY


class TestIdentity(Pooled):
    async def test_each_live_instance_has_a_host_uid_of_its_own(self, rig: Rig) -> None:
        instances = [await rig.run(ECHO) for _ in range(5)]
        uids = {Path(f"/proc/{instance.pid}").stat().st_uid for instance in instances}
        assert len(uids) == 5
        assert all(uid >= 0x70000000 for uid in uids)

    async def test_inside_it_is_an_ordinary_user_and_process_1(self, rig: Rig) -> None:
        instance = await rig.run(
            "import os\ndef handler(event):\n    return [os.getpid(), os.getuid(), os.getgid(), os.getgroups()]\n"
        )
        assert await instance.call() == [1, 1000, 1000, []]

    async def test_a_child_that_fails_says_so(self, rig: Rig) -> None:
        # With SIGCHLD ignored, as a zygote might have left it, this would be 0.
        instance = await rig.run(
            "import subprocess\ndef handler(event):\n    return subprocess.run(['false']).returncode\n"
        )
        assert await instance.call() == 1

    async def test_forks_of_one_zygote_do_not_share_their_luck(self, rig: Rig) -> None:
        source = (
            "import random, tempfile, uuid\n"
            "def handler(event):\n"
            "    return [random.random(), uuid.uuid4().hex, uuid.uuid1().hex, tempfile.mktemp()]\n"
        )
        said = [await (await rig.run(source)).call() for _ in range(4)]
        for column in zip(*said, strict=True):
            assert len(set(column)) == 4

    async def test_orphans_are_collected_and_awaited_children_are_not(self, rig: Rig) -> None:
        source = (
            "import os, subprocess, time\n"
            "kept = []\n"
            "def handler(event):\n"
            "    if event == 'orphan':\n"
            "        subprocess.run(['sh', '-c', 'sleep 0.01 & true'])\n"
            "    if event == 'keep':\n"
            "        kept.append(subprocess.Popen(['sh', '-c', 'exit 7']))\n"
            "        os.waitid(os.P_PID, kept[0].pid, os.WEXITED | os.WNOWAIT)\n"
            "    if event == 'ask':\n"
            "        return kept[0].wait()\n"
        )
        instance = await rig.run(source)
        await instance.call("orphan")
        await instance.call("keep")
        assert await instance.call("ask") == 7


class TestNetworks(Pooled):
    async def test_none_has_loopback_only(self, rig: Rig) -> None:
        instance = await rig.run(
            "import socket\ndef handler(event):\n    return socket.if_nameindex()\n"
        )
        assert await instance.call() == [[1, "lo"]]

    async def test_host_has_the_hosts_interfaces(self, rig: Rig) -> None:
        source = "import os\ndef handler(event):\n    return os.readlink('/proc/self/ns/net')\n"
        instance = await rig.run(source, network=Network.HOST)
        assert await instance.call() == str(Path("/proc/self/ns/net").readlink())

    async def test_nat_has_a_way_out(self, rig: Rig) -> None:
        source = "import socket\ndef handler(event):\n    return [name for _, name in socket.if_nameindex()]\n"
        instance = await rig.run(source, network=Network.NAT)
        assert await instance.call() == ["lo", "eth0"]


class TestWithoutStemCells(Pooled):
    settings = SockSettings(stem_cells=0)

    async def test_every_cell_is_made_when_it_is_needed(self, rig: Rig) -> None:
        instances = await asyncio.gather(*(rig.run(ECHO) for _ in range(6)))
        assert [await instance.call(number) for number, instance in enumerate(instances)] == list(
            range(6)
        )


class TestDeaths(Pooled):
    async def test_when_the_zygote_is_killed_instances_are_lost_and_the_next_one_starts(
        self, rig: Rig
    ) -> None:
        instance = await rig.run(ECHO)
        zygote = _parent(instance.pid)
        os.kill(zygote, signal.SIGKILL)
        assert (await instance.wait()).cause is DeathCause.LOST
        with pytest.raises(SandboxDeadError, match="its zygote ended"):
            await instance.sandbox.usage()
        assert await (await rig.run(ECHO)).call("again") == "again"

    async def test_when_the_launcher_is_killed_all_below_it_goes(self, rig: Rig) -> None:
        await rig.run(ECHO)
        below = descendants(os.getpid())
        launchers = [pid for pid in below if _parent(pid) == os.getpid()]
        for pid in launchers:
            os.kill(pid, signal.SIGKILL)
        await gone(below - set(launchers))
        assert await (await rig.run(ECHO)).call("again") == "again"

    async def test_stem_cells_that_were_killed_are_no_reason_to_fail(self, rig: Rig) -> None:
        zygote = _parent((await rig.run(ECHO)).pid)
        for pid in descendants(zygote):
            pidfd = os.pidfd_open(pid)
            os.kill(pid, signal.SIGKILL)
            # Not on the event loop, or the pool would have heard of their end before it takes one.
            assert select.select([pidfd], [], [], DEADLINE_S)[0]
            os.close(pidfd)
        assert await (await rig.run(ECHO)).call("well") == "well"

    async def test_a_cell_that_cannot_be_set_up_says_where_to_look(
        self, rig: Rig, tmp_path: Path
    ) -> None:
        spec = rig.spec(ECHO)
        await rig.pool.make_scratch(spec.scratch, spec.limits)
        # Without the files that the worker makes, the second act fails half way.
        sandbox = await rig.pool.create(spec)
        async with asyncio.timeout(DEADLINE_S):
            death = await sandbox.wait()
        assert death.exit_code == 70
        assert "the zygote's log" in death.detail
        await sandbox.destroy()
        await rig.pool.remove_scratch(spec.scratch)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


WORKER = """
import asyncio, sys
from pathlib import Path
from ol_sandbox_sock.pool import SockPool
from ol_sandbox_sock.settings import SockSettings
from olcore.interfaces import Limits, Network, WorkerContext
from olcore.testing.rendezvous import Rig
from olcore.testing.sandbox import ECHO

async def main(root):
    context = WorkerContext(cluster_name=str(root), worker_name="worker-0", worker_dir=root / "worker",
        base_dir=root / "base", packages_dir=root / "packages", limits=Limits(), network=Network.NAT)
    pool = SockPool(context, SockSettings())
    await pool.start()
    rig = Rig(pool, root / "worker" / "handlers")
    for network in (Network.NONE, Network.NAT, Network.HOST):
        await rig.run(ECHO, network=network)
    print("running", flush=True)
    await asyncio.Event().wait()

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    for name in ("worker/handlers", "base", "packages"):
        (tmp_path / name).mkdir(parents=True)
    with assert_no_leaks(tmp_path):
        yield tmp_path


async def test_when_the_worker_is_killed_processes_and_interfaces_go_at_once_and_clean_takes_the_rest(
    folders: Path,
) -> None:
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, str(folders), stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    async with asyncio.timeout(60):
        assert await worker.stdout.readline() == b"running\n"
    below = descendants(worker.pid)
    assert len(below) > 6
    worker.kill()
    await worker.wait()
    await gone(below)
    context = WorkerContext(
        cluster_name=str(folders),
        worker_name="worker-0",
        worker_dir=folders / "worker",
        base_dir=folders / "base",
        packages_dir=folders / "packages",
        limits=Limits(),
        network=Network.NAT,
    )
    removed = clean(context, SockSettings())
    assert any(line.startswith("mount ") for line in removed)
    assert any(line.startswith("cgroup ") for line in removed)
    assert not list(mounts.below(folders))
    assert clean(context, SockSettings()) == []


async def test_the_filter_can_be_turned_off_with_a_warning(
    folders: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = WorkerContext(
        cluster_name=str(folders),
        worker_name="worker-0",
        worker_dir=folders / "worker",
        base_dir=folders / "base",
        packages_dir=folders / "packages",
        limits=Limits(),
        network=Network.NONE,
    )
    pool = SockPool(context, SockSettings(seccomp="off"))
    await pool.start()
    rig = Rig(pool, folders / "worker" / "handlers")
    try:
        instance = await rig.run(
            "def handler(event):\n    return open('/proc/self/status').read()\n"
        )
        assert "Seccomp:\t0" in await instance.call()
        assert "sock.seccomp is off" in caplog.text
        with pytest.raises(GuestError):
            await (await rig.run("1/0")).call()
    finally:
        await rig.close()
        await pool.close()
