"""olcore kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from olcore.cli import processes
from tests.cli.conftest import Cli
from tests.integration.clusters import await_end


def test_kill_stops_every_worker_and_has_nothing_to_clean(made: Cli) -> None:
    made.ok("workers", "-n", "2")
    pids = [made.pid(0), made.pid(1)]
    out = made.ok("kill")
    assert out == "".join(f"Stopped worker-{n} (pid {pid})\n" for n, pid in enumerate(pids))
    await_end(pids)
    assert not list((made.root / "logs").glob("*.pid"))


def test_kill_twice_is_kill_once(running: Cli) -> None:
    running.ok("kill")
    assert running.ok("kill") == f"No workers run in {running.root}\n"


def test_after_a_crash_kill_clears_what_is_left(running: Cli) -> None:
    left = running.root / "workers" / "worker-0" / "handlers" / "h" / "1"
    left.mkdir(parents=True)
    pid = running.pid()
    os.kill(pid, signal.SIGKILL)
    await_end([pid])
    running.ok("kill")
    assert not left.exists()
    assert not running.pid_file().exists()


def test_a_pid_that_is_another_programs_now_is_left_alone(made: Cli) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        mine = processes.identify(other.pid)
        assert mine
        folder = made.root / "workers" / "worker-0"
        folder.mkdir()
        stale = processes.Process(
            pid=mine.pid, start_ticks=mine.start_ticks - 1, boot_id=mine.boot_id, session=mine.pid
        )
        processes.write(folder / "process.json", stale)
        made.pid_file().write_text(f"{other.pid}\n")
        out = made.ok("kill")
        assert f"process {other.pid} is another program now, and was left alone" in out
        assert other.poll() is None
        other.communicate(b"\n")
    assert other.returncode == 0
    assert not made.pid_file().exists()


def test_a_worker_whose_configuration_is_damaged_can_be_stopped(running: Cli) -> None:
    pid = running.pid()
    (running.root / "config" / "worker-0.json").write_text("{")
    said = running("kill")
    assert said.code == 0
    assert f"Stopped worker-0 (pid {pid})" in said.out
    assert "cleaning with default settings" in said.err


def test_kill_of_no_cluster_says_how_to_make_one(cli: Cli) -> None:
    said = cli("kill")
    assert said.code == 1
    assert "hint: olcore new --cluster my-cluster" in said.err
