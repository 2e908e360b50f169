"""olcore workers and olcore worker-exec."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from olcore.cli import client, processes
from olcore.config import Config
from tests.cli.conftest import Cli, Said, in_a_process
from tests.integration.clusters import await_end, await_true


def test_workers_start_in_the_background_and_say_where(made: Cli) -> None:
    lines = made.ok("workers", "--num-workers", "2").splitlines()
    for number, line in enumerate(lines):
        port = made.port + number
        assert line == (
            f"Started worker: pid {made.pid(number)}, URL http://localhost:{port}, "
            f"log at {made.root}/logs/worker-{number}.out"
        )
        assert client.get(Config(worker_port=port), "/status").body.strip() == b"ready"
        # A session of its own: no terminal takes it along.
        assert os.getsid(made.pid(number)) == made.pid(number)
    assert len(lines) == 2


def test_a_workers_configuration_names_every_path_in_full(running: Cli) -> None:
    written = json.loads((running.root / "config" / "worker-0.json").read_text())
    assert written["worker_dir"] == f"{running.root}/workers/worker-0"
    assert written["registry_dir"] == f"{running.root}/registry"
    assert written["worker_port"] == running.port


def test_a_port_that_is_taken_is_said_with_who_has_it(made: Cli) -> None:
    with socket.create_server(("127.0.0.1", made.port)):
        said = made("workers")
    assert said.code == 1
    assert f"port {made.port} of 127.0.0.1 is taken by process {os.getpid()} (" in said.err
    assert "choose another port with --port" in said.err
    assert not made.pid_file().exists()


def test_when_the_second_port_is_taken_no_worker_is_started(made: Cli) -> None:
    with socket.create_server(("127.0.0.1", made.port + 1)):
        assert made("workers", "-n", "2").code == 1
    assert made.ok("status") == f"No workers run in {made.root}\n"


def test_a_worker_that_runs_is_not_started_again(running: Cli) -> None:
    said = running("workers")
    assert said.code == 1
    assert said.err == (
        f"olcore: worker-0 already runs (process {running.pid()})\n"
        "hint: olcore kill --cluster my-cluster\n"
    )
    assert "ready [200 OK]" in running.ok("status")


def test_a_start_that_fails_is_told_with_the_last_lines_of_its_log(made: Cli) -> None:
    made.ok("setconf", "pretended.fails=out of everything")
    said = made("workers")
    assert said.code == 1
    assert "worker-0 did not start (exit code" in said.err
    assert f"the last lines of {made.root}/logs/worker-0.out:" in said.err
    assert "out of everything" in said.err
    assert not made.pid_file().exists()
    made.ok("setconf", "pretended.fails=null")
    made.ok("workers")


def test_a_sandbox_that_is_not_installed_is_named_with_what_installs_it(made: Cli) -> None:
    made.template.write_text('{"sandbox": "gvisor"}')
    said = made("workers")
    assert said.code == 1
    assert "hint: pip install ol-sandbox-gvisor" in said.err


@pytest.mark.parametrize("text", ["999999999", "nonsense", ""])
def test_a_stale_pid_file_is_no_hindrance(made: Cli, text: str) -> None:
    made.pid_file().write_text(text)
    made.ok("workers")
    assert made.pid() > 0


def test_after_a_crash_workers_start_clean(running: Cli) -> None:
    left = running.root / "workers" / "worker-0" / "handlers" / "h" / "1" / "deep"
    left.mkdir(parents=True)
    pid = running.pid()
    os.kill(pid, signal.SIGKILL)
    await_end([pid])
    running.ok("workers")
    assert not left.exists()


def test_a_pid_that_is_another_programs_now_is_not_taken_for_the_worker(made: Cli) -> None:
    mine = processes.identify(os.getpid())
    assert mine
    stale = processes.Process(
        pid=mine.pid, start_ticks=mine.start_ticks - 1, boot_id=mine.boot_id, session=mine.pid
    )
    folder = made.root / "workers" / "worker-0"
    folder.mkdir()
    processes.write(folder / "process.json", stale)
    made.pid_file().write_text(f"{mine.pid}\n")
    made.ok("workers")


def test_the_section_of_a_plugin_that_is_gone_is_warned_of(made: Cli) -> None:
    made.template.write_text(json.dumps({**made.configured(), "vm": {"kernel": "x"}}))
    said = made("workers")
    assert said.code == 0, said.err
    assert "'vm' is ignored: no plugin that works has that name" in said.err
    assert "ready [200 OK]" in made.ok("status")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--num-workers", "0"], "0 is not in the range"),
        (["--port", "99999"], "99999 is not in the range"),
        (["--port", "http"], "'http' is not a valid integer range"),
    ],
)
def test_a_number_that_cannot_be_is_a_matter_of_usage(
    made: Cli, arguments: list[str], said: str
) -> None:
    refused = made("workers", *arguments)
    assert refused.code == 2
    assert said in refused.err


def worker_exec(file: Path) -> Said:
    return in_a_process("worker-exec", "--config", str(file))


@pytest.mark.parametrize("quoted", [True, False])
def test_worker_exec_needs_no_more_than_a_port(made: Cli, tmp_path: Path, quoted: bool) -> None:
    file = tmp_path / "one.json"
    port = str(made.port) if quoted else made.port
    # The sandbox is named for machines without root; sock is the default.
    file.write_text(json.dumps({"worker_port": port, "sandbox": "pretended"}))
    command = [sys.executable, "-m", "olcore", "worker-exec", "--config", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as worker:
        try:
            await_true(lambda: client.is_ready(Config(worker_port=made.port)), "the worker answers")
            assert (tmp_path / "workers" / "one").is_dir()
            worker.send_signal(signal.SIGINT)
            _, log = worker.communicate(timeout=30)
        except BaseException:
            worker.kill()
            raise
    assert worker.returncode == 0, log


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"worker_prt": 1}', "unknown key 'worker_prt'\nhint: did you mean 'worker_port'?"),
        ('{"worker_port": "eighty"}', "Expected `int`, got `str` - at `$.worker_port`"),
        ('{"worker_port": 1,', "not JSON: "),
        ('{"sandbox": "gvisor"}', "hint: pip install ol-sandbox-gvisor"),
        ("8080", "expected a JSON object, got int"),
    ],
)
def test_worker_exec_refuses_a_wrong_file_with_the_field(
    cli: Cli, tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "w.json"
    file.write_text(text)
    refused = cli("worker-exec", "--config", str(file), cluster=False)
    assert refused.code == 2
    assert str(file) in refused.err
    assert said in refused.err


def test_worker_exec_without_its_file_is_a_matter_of_usage(cli: Cli, tmp_path: Path) -> None:
    missing = cli("worker-exec", "--config", str(tmp_path / "none.json"), cluster=False)
    assert missing.code == 2
    assert "none.json': No such file or directory" in missing.err
    assert cli("worker-exec", cluster=False).code == 2


def test_two_workers_cannot_have_one_folder(running: Cli) -> None:
    said = worker_exec(running.root / "config" / "worker-0.json")
    assert said.code == 1
    assert f"process {running.pid()} already runs on" in said.err
