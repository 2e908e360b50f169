"""The quickstart, as its reader types it, on a real sandbox."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from olcore.testing.processes import descendants
from tests.integration.clusters import Cluster, await_end, await_true, free_ports

pytestmark = pytest.mark.kernel
EXAMPLES = Path(__file__).parents[2] / "examples"
SLOW = "import time\ndef handler(event):\n    time.sleep(event)\n    return 'old'\n"


def test_from_new_to_kill(running: Cluster) -> None:
    shutil.copytree(EXAMPLES / "hello", running.root / "registry" / "hello")
    assert running.call("hello", {"name": "Alice"}).body == b'"Hello, Alice!"'
    status = running.olcore("status").stdout
    assert f"  http://localhost:{running.port}/status => ready [200 OK]" in status
    assert status.startswith("Worker Pings:")
    assert "hello" in status.partition("Cluster containers:")[2]
    running.olcore("kill")
    running.olcore("kill")
    assert not list((running.root / "logs").glob("*.pid"))


@pytest.mark.parametrize(
    "spelling", [["--cluster", "{}"], ["--cluster={}"], ["-cluster={}"], ["-cluster", "{}"]]
)
def test_every_spelling_of_the_cluster_works(tmp_path: Path, spelling: list[str]) -> None:
    flags = [part.format(tmp_path / "cl") for part in spelling]
    subprocess.run([sys.executable, "-m", "olcore", "new", *flags], check=True)
    assert (tmp_path / "cl/config/template.json").is_file()


def test_the_cluster_may_be_left_out(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "olcore", "new"]
    environment = {key: value for key, value in os.environ.items() if key != "OLCORE_CLUSTER"}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    assert (tmp_path / "my-cluster/config/template.json").is_file()
    subprocess.run(
        command, check=True, cwd=tmp_path, env={**environment, "OLCORE_CLUSTER": "other"}
    )
    assert (tmp_path / "other/config/template.json").is_file()


def test_status_codes(running: Cluster) -> None:
    running.add("echo", "def handler(event):\n    return event\n")
    running.add("broken", "import nonesuch\n")
    running.add("raising", "def handler(event):\n    raise KeyError(event['which'])\n")
    running.add("nan", "def handler(event):\n    return float('nan')\n")
    running.add("exiting", "import os\ndef handler(event):\n    os._exit(3)\n")
    running.add("slow", SLOW, olcore_toml="[limits]\ntimeout_s = 0.5\n")
    assert running.call("echo").json == {}
    assert running.call("nope").status == 404
    assert running.request("POST", "/run/echo", b"[1]").json == [1]
    assert running.request("PUT", "/runLambda/echo/extra", b"[2]").json == [2]
    bad = running.request("POST", "/runLambda/echo", b'{"a": }')
    assert (bad.status, bad.error["code"], bad.error["position"]) == (400, "bad_event", 6)
    assert running.request("POST", "/runLambda/..%2f..", b"").status in {400, 404}
    broken = running.call("broken")
    assert (broken.status, broken.error["code"]) == (500, "load_failed")
    assert "nonesuch" in broken.error["traceback"]
    raised = running.call("raising", {"which": "key"})
    assert (raised.status, raised.error["code"], raised.error["type"]) == (
        500,
        "handler_raised",
        "KeyError",
    )
    assert running.call("nan").error["code"] == "bad_result"
    exited = running.call("exiting")
    assert (exited.status, exited.error["death"]["exit_code"]) == (502, 3)
    late = running.call("slow", 60)
    assert (late.status, late.error["code"]) == (504, "timeout")
    assert "0.5" in late.error["message"]
    assert {"handler", "request_id", "message"} <= set(late.error)
    assert running.request("GET", "/status").body.strip() == b"ready"


def test_an_unknown_name_twice_does_no_harm(running: Cluster) -> None:
    for _ in range(2):
        assert running.call("nope").status == 404
    assert running.request("GET", "/status").status == 200


def test_a_changed_handler_is_served_at_once_while_requests_in_flight_finish_on_the_old(
    running: Cluster,
) -> None:
    running.add(
        "h",
        "import time\ndef handler(event):\n    open('/host/begun', 'w')\n    time.sleep(event)\n    return 'old'\n",
    )
    running.call("h", 0)
    old: list[object] = []
    thread = threading.Thread(target=lambda: old.append(running.call("h", 2).json))
    begun = running.root / "workers/worker-0/handlers/h"
    for file in begun.glob("*/begun"):
        file.unlink()
    thread.start()
    await_true(lambda: list(begun.glob("*/begun")), "the request in flight has begun")
    running.add("h", "def handler(event):\n    return 'new'\n")
    assert running.call("h", 0).json == "new"
    thread.join()
    assert old == ["old"]


def test_a_handler_that_fails_to_import_is_tried_again_with_its_newest_code(
    running: Cluster,
) -> None:
    running.add("h", "1/0\n")
    assert running.call("h").error["type"] == "ZeroDivisionError"
    running.add("h", "def handler(event):\n    return 'mended'\n")
    assert running.call("h").json == "mended"


def test_a_deep_cluster_folder_works(tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 15) / ("deeper" * 10)
    deep.mkdir(parents=True)
    cluster = Cluster(deep / "my-cluster", 0)
    cluster.olcore("new")
    config = cluster.root / "config" / "worker-0.json"
    assert len(str(config)) > 108
    cluster.port = free_ports()
    cluster.start()
    try:
        cluster.add("echo", "def handler(event):\n    return event\n")
        assert cluster.call("echo", "deep").json == "deep"
    finally:
        cluster.olcore("kill")


def test_the_first_ctrl_c_drains(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "worker.json"
    file.write_text(
        f'{{"worker_port": "{cluster.port}", "registry_dir": "{cluster.root}/registry", "worker_dir": "{tmp_path}/state"}}'
    )
    cluster.add(
        "slow",
        "import time\ndef handler(event):\n    open('/host/begun', 'w')\n    time.sleep(event)\n    return 'done'\n",
    )
    command = [sys.executable, "-m", "olcore", "worker-exec", "--config", str(file)]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as worker:
        try:
            await_true(
                lambda: cluster.request("GET", "/status").status == 200, "the worker answers"
            )
            answers: list[object] = []
            thread = threading.Thread(target=lambda: answers.append(cluster.call("slow", 1).json))
            thread.start()
            await_true(
                lambda: list((tmp_path / "state/handlers/slow").glob("*/begun")), "the request runs"
            )
            worker.send_signal(signal.SIGINT)
            thread.join()
            assert answers == ["done"]
            _, log = worker.communicate(timeout=30)
        except BaseException:
            worker.kill()
            raise
    assert worker.returncode == 0, log
    cluster.port = 0


def test_when_the_worker_process_is_killed_the_arbiter_starts_a_clean_one(running: Cluster) -> None:
    running.add("echo", "def handler(event):\n    return event\n")
    running.call("echo", 1)
    worker = running.worker_process()
    below = descendants(worker)
    assert len(below) > 3
    os.kill(worker, signal.SIGKILL)
    await_end([worker, *below])
    await_true(
        lambda: running.request("GET", "/status").status == 200, "the next worker process answers"
    )
    assert running.call("echo", 2).json == 2
    assert len(list((running.root / "workers/worker-0/handlers/echo").iterdir())) == 1


def test_when_the_arbiter_is_killed_all_below_it_ends_and_workers_starts_clean(
    running: Cluster,
) -> None:
    running.add("echo", "def handler(event):\n    return event\n")
    running.call("echo", 1)
    arbiter = running.arbiter()
    below = descendants(arbiter)
    os.kill(arbiter, signal.SIGKILL)
    await_end([arbiter, *below])
    assert "workers" not in [
        line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()
    ]
    running.start()
    assert running.call("echo", 2).json == 2


def test_several_workers_of_one_cluster(cluster: Cluster) -> None:
    cluster.start("--num-workers=2")
    cluster.add("echo", "def handler(event):\n    return event\n")
    for number in range(2):
        assert cluster.call("echo", number, port=cluster.port + number).json == number
    assert cluster.olcore("status").stdout.count("ready [200 OK]") == 2
