"""Limits, deaths and pausing, from the caller's side of HTTP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.clusters import Cluster, await_true

pytestmark = pytest.mark.kernel

EAT = """
def handler(event):
    if event == "hello":
        return event
    kept = []
    while True:
        kept.append(b"x" * (1 << 20))
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
    except OSError:
        return count
"""
STUBBORN = """
import signal
for number in range(1, 32):
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_IGN)
def handler(event):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
"""
FLOOD = """
import os
def handler(event):
    line = b"x" * 65536
    written = 0
    try:
        while True:
            written += os.write(1, line)
    except OSError:
        return written >> 20
"""
COUNT = """
import threading, time
count = 0
def turn():
    global count
    while True:
        count += 1
        with open("/host/count", "w") as file:
            file.write(str(count))
        time.sleep(0.001)
threading.Thread(target=turn, daemon=True).start()
def handler(event):
    return count
"""
SPIN = """
import time
def handler(event):
    end = time.monotonic() + event
    while time.monotonic() < end:
        pass
"""


def test_over_memory_the_caller_is_told_and_the_next_request_gets_a_fresh_instance(
    running: Cluster,
) -> None:
    running.add("eat", EAT)
    running.call("eat", "hello")
    [first] = running.instances()
    answer = running.call("eat", "eat")
    assert (answer.status, answer.error["code"]) == (502, "instance_died")
    assert "out of memory: over its limit of 128 MiB" in answer.error["message"]
    assert answer.error["death"]["cause"] == "out_of_memory"
    assert running.call("eat", "hello").status == 200
    assert [one["id"] for one in running.instances()] != [first["id"]]
    assert running.deaths()[-1]["death"]["cause"] == "out_of_memory"


def test_over_time_the_instance_goes_even_when_it_ignores_every_signal(running: Cluster) -> None:
    running.add("stubborn", STUBBORN, olcore_toml="[limits]\ntimeout_s = 1\n")
    answer = running.call("stubborn")
    assert (answer.status, answer.error["code"]) == (504, "timeout")
    assert "1 s" in answer.error["message"]
    await_true(lambda: not running.instances(), "the instance is gone")
    assert running.deaths()[-1]["reason"] == "timeout"


def test_a_fork_bomb_stays_in_its_box(running: Cluster) -> None:
    running.add("fork", FORK, olcore_toml="[limits]\nmax_processes = 20\n")
    running.add("echo", "def handler(event):\n    return event\n")
    assert running.call("fork").json < 20
    assert running.call("echo", "unmoved").json == "unmoved"


def test_a_flood_of_output_fills_its_own_folder_only(running: Cluster) -> None:
    running.add("flood", FLOOD, olcore_toml="[limits]\nscratch_mb = 8\n")
    assert running.call("flood").json <= 8
    folder = next((running.root / "workers/worker-0/handlers/flood").iterdir())
    # The operator can look into it from the host.
    assert (folder / "stdout").read_bytes()[:3] == b"xxx"
    assert (folder / "stdout").stat().st_size <= 8 << 20


def test_an_idle_instance_stands_still_until_the_next_request(cluster: Cluster) -> None:
    cluster.olcore("setconf", '{"pause_after_ms": 200}')
    cluster.start()
    cluster.add("count", COUNT)
    before = cluster.call("count").json
    await_true(
        lambda: [one for one in cluster.instances() if one["state"] == "paused"], "it is paused"
    )
    file: Path = next((cluster.root / "workers/worker-0/handlers/count").iterdir()) / "count"
    stood = file.read_text()
    # Another handler's whole cold start goes by, and the counter has not moved.
    cluster.add("echo", "def handler(event):\n    return event\n")
    cluster.call("echo")
    assert file.read_text() == stood
    assert cluster.call("count").json >= before
    await_true(lambda: file.read_text() not in {"", stood}, "it counts again")


def test_a_handler_may_lower_limits_and_raise_them_up_to_the_clusters_bound(
    running: Cluster,
) -> None:
    source = "def handler(event):\n    return len(bytearray(event << 20)) >> 20\n"
    running.add("small", source, olcore_toml="[limits]\nmemory_mb = 32\n")
    assert "over its limit of 32 MiB" in running.call("small", 100).error["message"]
    running.add("large", source, olcore_toml="[limits]\nmemory_mb = 300\n")
    assert running.call("large", 200).json == 200
    running.add("greedy", source, olcore_toml="[limits]\nmemory_mb = 999999\n")
    greedy = running.call("greedy", 1)
    assert (greedy.status, greedy.error["code"]) == (500, "handler_invalid")
    assert "2048" in greedy.error["message"] + str(greedy.error.get("hint"))


def test_an_unknown_key_names_the_nearest(running: Cluster) -> None:
    running.add("typo", "def handler(event):\n    pass\n", olcore_toml="[limits]\nmemroy_mb = 1\n")
    error = running.call("typo").error
    assert "memroy_mb" in error["message"]
    assert "memory_mb" in error["message"] + str(error.get("hint"))


def test_a_handler_may_give_up_the_network(running: Cluster) -> None:
    source = "import socket\ndef handler(event):\n    return [name for _, name in socket.if_nameindex()]\n"
    running.add("offline", source, olcore_toml='network = "none"\n')
    running.add("online", source)
    assert running.call("offline").json == ["lo"]
    assert running.call("online").json == ["lo", "eth0"]
    running.add("host", source, olcore_toml='network = "host"\n')
    assert running.call("host").error["code"] == "handler_invalid"


def test_the_environment_of_a_handler_is_its_own(running: Cluster) -> None:
    source = "import os\ndef handler(event):\n    return dict(os.environ)\n"
    running.add("env", source, olcore_toml='[environment]\nSECRET = "of env"\n')
    running.add("other", source)
    assert running.call("env").json == {"SECRET": "of env"}
    assert running.call("other").json == {}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import os\ndef handler(event):\n    os._exit(7)\n", "exited with code 7"),
        (
            "import os, signal\ndef handler(event):\n    import ctypes\n    ctypes.string_at(0)\n",
            "killed by SIGSEGV",
        ),
    ],
)
def test_the_body_and_status_say_how_an_instance_died(
    running: Cluster, source: str, said: str
) -> None:
    running.add("die", source)
    answer = running.call("die")
    assert answer.status == 502
    assert said in answer.error["message"]
    assert said in running.olcore("status").stdout


def test_the_processor_is_shared_out(running: Cluster) -> None:
    running.add("spin", SPIN, olcore_toml="[limits]\ncpu_percent = 10\n")
    running.call("spin", 0.5)
    throttled = 0
    for file in Path("/sys/fs/cgroup").glob("**/olcore/*/*/cpu.stat"):
        pairs = dict(line.split() for line in file.read_text().splitlines())
        throttled += int(pairs.get("nr_throttled", 0))
    assert throttled > 0


def test_too_large_bodies_and_results_are_refused(running: Cluster) -> None:
    running.add(
        "make",
        "def handler(event):\n    return 'x' * event\n",
        olcore_toml="[limits]\nmax_result_mb = 1\nmax_body_mb = 1\n",
    )
    assert running.call("make", 100).status == 200
    assert running.call("make", 2 << 20).error["code"] == "bad_result"
    large = running.request("POST", "/runLambda/make", json.dumps("x" * (8 << 20)).encode())
    assert (large.status, large.error["code"]) == (413, "event_too_large")
