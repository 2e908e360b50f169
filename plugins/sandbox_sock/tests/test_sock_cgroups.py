"""Control groups on this machine's kernel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from ol_sandbox_sock import cgroup_files, cgroups
from ol_sandbox_sock.cgroups import Cgroup, WorkerCgroups
from olcore.interfaces import Limits

LIMITS = Limits(memory_mb=64, cpu_percent=50, max_processes=20)


@pytest.fixture
def worker() -> Iterator[WorkerCgroups]:
    worker = cgroups.find().worker(f"ol-test-{uuid.uuid4().hex[:8]}")
    yield worker
    worker.close()
    left = [top / worker.label for top in worker.hierarchy.tops if (top / worker.label).exists()]
    assert left == []


ENTER = """
import os, sys
for fd in map(int, sys.argv[1].split(',')) if sys.argv[1] else ():
    os.write(fd, b'0')
    os.close(fd)
print('in', flush=True)
"""


@contextlib.contextmanager
def _running(group: Cgroup, code: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python code in the group, entered as an instance does; it starts when a line is written to it."""
    fds = group.entry_fds()
    process = subprocess.Popen(
        [
            sys.executable,
            "-S",
            "-c",
            f"{ENTER}\nsys.stdin.readline()\n{code}",
            ",".join(map(str, fds)),
        ],
        pass_fds=fds,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert process.stdin
    assert process.stdout
    with process:
        try:
            assert process.stdout.readline() == "in\n"
            if not fds:
                group.attach(process.pid)
            process.stdin.write("go\n")
            yield process
        finally:
            for fd in fds:
                os.close(fd)
            process.kill()


@pytest.mark.kernel
def test_a_process_enters_through_descriptors_and_is_counted(worker: WorkerCgroups) -> None:
    group = worker.make("one", LIMITS)
    with _running(group, "sys.stdin.readline()"):
        usage = group.usage()
        assert usage.processes == 1
        assert usage.memory_bytes >= 0
        assert usage.cpu_s >= 0


@pytest.mark.kernel
def test_over_memory_one_process_is_killed_and_counted(worker: WorkerCgroups) -> None:
    group = worker.make("one", Limits(memory_mb=32))
    with _running(group, "x = bytearray(256 * 1024 * 1024)\nprint('survived')") as process:
        assert process.stdout
        assert process.stdout.read() == ""
        assert process.wait() == -signal.SIGKILL
    assert group.oom_kills() == 1


@pytest.mark.kernel
def test_a_child_over_memory_does_not_take_its_parent_down(worker: WorkerCgroups) -> None:
    group = worker.make("one", Limits(memory_mb=64))
    code = (
        "pid = os.fork()\n"
        "if not pid:\n"
        "    x = bytearray(256 * 1024 * 1024)\n"
        "    os._exit(0)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    with _running(group, code) as process:
        assert process.stdout
        assert process.stdout.read() == "-9\n"
    assert group.oom_kills() == 1


@pytest.mark.kernel
def test_over_max_processes_fork_fails(worker: WorkerCgroups) -> None:
    group = worker.make("one", Limits(max_processes=5))
    code = (
        "count = 1\n"
        "try:\n"
        "    while True:\n"
        "        if os.fork() == 0:\n"
        "            sys.stdin.read()\n"
        "            os._exit(0)\n"
        "        count += 1\n"
        "except BlockingIOError:\n"
        "    print(count, flush=True)\n"
        "    sys.stdin.read()"
    )
    with _running(group, code) as process:
        assert process.stdout
        assert process.stdout.readline() == "5\n"
        assert group.usage().processes == 5
        group.kill()


@pytest.mark.kernel
def test_limits_can_grow_and_shrink(worker: WorkerCgroups) -> None:
    group = worker.make("one", LIMITS)
    group.set_limits(Limits(memory_mb=256))
    group.set_limits(Limits(memory_mb=16))
    with _running(group, "x = bytearray(100 * 1024 * 1024)") as process:
        assert process.wait() == -signal.SIGKILL


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def _freeze_and_thaw(group: Cgroup, pid: int) -> None:
    await group.freeze(5)
    await group.freeze(5)  # pausing twice is pausing once
    before = _cpu_ticks(pid)
    end = (
        time.thread_time() + 0.05
    )  # long enough for a spinning process to be seen on the other core
    while time.thread_time() < end:
        pass
    assert _cpu_ticks(pid) == before
    group.thaw()
    while _cpu_ticks(pid) == before:
        await asyncio.sleep(0)


@pytest.mark.kernel
@pytest.mark.parametrize("ahead", [True, False])
async def test_a_frozen_process_stands_still(worker: WorkerCgroups, ahead: bool) -> None:
    group = worker.make("one", LIMITS)
    with _running(group, "while True: pass") as process:
        if ahead:
            group.make_freezable()
        await _freeze_and_thaw(group, process.pid)


@pytest.mark.kernel
def test_freezing_works_on_uvloop(worker: WorkerCgroups) -> None:
    group = worker.make("one", LIMITS)
    with _running(group, "while True: pass") as process:
        uvloop.run(_freeze_and_thaw(group, process.pid))


@pytest.mark.kernel
async def test_a_family_is_frozen_together(worker: WorkerCgroups) -> None:
    group = worker.make("one", LIMITS)
    code = "os.write(1, b'%d\\n' % os.fork())\nwhile True: pass"
    with _running(group, code) as process:
        assert process.stdout
        child = max(int(process.stdout.readline()) for _ in range(2))
        await group.freeze(5)
        before = _cpu_ticks(child), _cpu_ticks(process.pid)
        assert (_cpu_ticks(child), _cpu_ticks(process.pid)) == before
        group.kill()  # frozen as they are
        await group.remove()


@pytest.mark.kernel
async def test_freezing_what_is_empty_returns(worker: WorkerCgroups) -> None:
    group = worker.make("one", LIMITS)
    await group.freeze(5)
    group.thaw()


@pytest.mark.kernel
@pytest.mark.parametrize("freezable", [True, False])
async def test_kill_and_remove_leave_nothing(worker: WorkerCgroups, freezable: bool) -> None:
    group = worker.make("one", LIMITS)
    code = "os.fork(); os.fork(); os.write(1, b'up\\n'); sys.stdin.read()"
    with _running(group, code) as process:
        assert process.stdout
        for _ in range(4):
            assert process.stdout.readline() == "up\n"
        if freezable:
            group.make_freezable()
        group.kill()
        await group.remove()
        assert process.wait() == -signal.SIGKILL
    assert not any(path.exists() for path in group.paths)
    await group.remove()
    group.kill()


@pytest.mark.kernel
async def test_a_group_that_stays_full_is_not_removed(worker: WorkerCgroups) -> None:
    group = worker.make("one", LIMITS)
    with _running(group, "sys.stdin.read()"), pytest.raises(TimeoutError, match="not empty"):
        await group.remove(0.01)


@pytest.mark.kernel
def test_a_process_attached_from_outside_is_in_every_hierarchy(worker: WorkerCgroups) -> None:
    group = worker.make("one", LIMITS)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        group.attach(process.pid)
        assert all(cgroup_files.pids(path) == [process.pid] for path in group.paths)
        group.kill()


@pytest.mark.kernel
def test_a_group_of_the_same_name_is_refused_and_left_alone(worker: WorkerCgroups) -> None:
    group = worker.make("one", LIMITS)
    with _running(group, "sys.stdin.read()"):
        with pytest.raises(FileExistsError):
            worker.make("one", LIMITS)
        assert group.usage().processes == 1


@pytest.mark.kernel
def test_limits_that_the_kernel_refuses_leave_no_group(worker: WorkerCgroups) -> None:
    with pytest.raises(OSError, match=r"writing '-\d+'"):
        worker.make("one", Limits(max_processes=-5))
    top = worker.hierarchy.tops[0]
    assert not list((top / worker.label).glob("one"))


@pytest.mark.kernel
def test_clean_kills_and_removes_what_a_dead_worker_left() -> None:
    label = f"ol-test-{uuid.uuid4().hex[:8]}"
    worker = cgroups.find().worker(label)
    group = worker.make("one", LIMITS)
    worker.make("two", LIMITS)
    with _running(group, "sys.stdin.read()") as process:
        assert cgroups.clean(label) == [
            f"cgroup olcore/{label}/one",
            f"cgroup olcore/{label}/two",
        ]
        assert process.wait() == -signal.SIGKILL
    assert cgroups.clean(label) == []


@pytest.mark.kernel
def test_a_group_keeps_no_descriptor_open(worker: WorkerCgroups) -> None:
    before = sorted(path.name for path in Path("/proc/self/fd").iterdir())
    group = worker.make("one", LIMITS)
    group.usage()
    group.oom_kills()
    asyncio.run(group.remove())
    assert sorted(path.name for path in Path("/proc/self/fd").iterdir()) == before


@pytest.mark.kernel
def test_this_machine_is_usable() -> None:
    assert cgroups.why_unusable() is None
