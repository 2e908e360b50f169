"""olcore status."""

from __future__ import annotations

import os
import signal
import urllib.request

from tests.cli.conftest import Cli
from tests.integration.clusters import await_end


def test_without_workers_status_says_so(made: Cli) -> None:
    assert made.ok("status") == f"No workers run in {made.root}\n"


def test_status_pings_every_worker_and_lists_the_instances(running: Cli) -> None:
    folder = running.root / "registry" / "echo"
    folder.mkdir()
    (folder / "lambda_func.py").write_text("def handler(event):\n    return event\n")
    url = f"http://127.0.0.1:{running.port}/runLambda/echo"
    with urllib.request.urlopen(url, data=b"1", timeout=30) as reply:
        assert reply.read() == b"1"
    head, _, containers = running.ok("status").partition("\n\nCluster containers:\n")
    assert head == f"Worker Pings:\n  http://localhost:{running.port}/status => ready [200 OK]"
    assert containers.startswith("  worker-0/echo/")
    assert "[pretended]" in containers


def test_a_worker_that_was_killed_is_told_with_the_reason_and_its_log(running: Cli) -> None:
    pid = running.pid()
    os.kill(pid, signal.SIGKILL)
    await_end([pid])
    said = running("status")
    assert said.code == 1
    assert f"/status: its process ({pid}) is gone" in said.out
    assert "the last lines of" in said.out
    assert said.err == "olcore: at least one worker failed the status check\n"


def test_a_worker_that_answers_nothing_is_told_with_the_reason(running: Cli) -> None:
    # Its port is another's by now, as far as this command can see.
    file = running.root / "config" / "worker-0.json"
    file.write_text(
        file.read_text().replace(
            f'"worker_port": {running.port}', f'"worker_port": {running.port + 1}'
        )
    )
    said = running("status")
    assert said.code == 1
    assert f"http://localhost:{running.port + 1}/status: Connection refused" in said.out


def test_status_of_no_cluster_says_how_to_make_one(cli: Cli) -> None:
    said = cli("status")
    assert said.code == 1
    assert said.err.endswith("hint: olcore new --cluster my-cluster\n")
