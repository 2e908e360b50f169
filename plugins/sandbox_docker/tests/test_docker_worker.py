"""A whole cluster on Docker, through the commands that users type."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ol_sandbox_docker.engine import Engine
from ol_sandbox_docker.settings import DockerSettings
from olcore.testing.leaks import assert_no_leaks
from olcore.testing.rendezvous import DEADLINE_S

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

HELLO = "def handler(event):\n    return f\"Hello, {event['name']}!\"\n"


class Cluster:
    """A cluster folder with the sandbox docker, on the private engine."""

    def __init__(self, root: Path, settings: DockerSettings) -> None:
        self.root = root
        self.settings = settings
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def olcore(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "olcore", *arguments, "--cluster", str(self.root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self) -> None:
        self.olcore("workers", "--port", str(self.port))

    def call(self, name: str, event: Any) -> tuple[int, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/runLambda/{name}", json.dumps(event).encode()
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def add(self, name: str, source: str) -> None:
        folder = self.root / "registry" / f".{name}"
        folder.mkdir()
        (folder / "lambda_func.py").write_text(source)
        folder.rename(self.root / "registry" / name)

    def containers(self) -> list[dict[str, Any]]:
        engine = Engine(self.settings.base_url, DEADLINE_S)
        try:
            return engine.containers({"ol.cluster": str(self.root)})
        finally:
            engine.close()


@pytest.fixture
def cluster(engine: Any, settings: DockerSettings, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path / "my-cluster", settings)
    with assert_no_leaks(tmp_path, except_in=engine.folder):
        cluster.olcore("new")
        chosen = {"sandbox": "docker", "docker": msgspec.to_builtins(settings)}
        cluster.olcore("setconf", json.dumps(chosen))
        cluster.add("hello", HELLO)
        yield cluster
        cluster.olcore("kill")
    assert cluster.containers() == []


def test_a_handler_answers_and_kill_leaves_nothing(cluster: Cluster) -> None:
    cluster.start()
    assert cluster.call("hello", {"name": "Alice"}) == (200, "Hello, Alice!")
    assert cluster.call("hello", {"name": "Bob"}) == (200, "Hello, Bob!")
    assert "ready [200 OK]" in cluster.olcore("status")
    assert len(cluster.containers()) == 1


def test_a_network_of_its_own_and_warm_containers_work_the_same(cluster: Cluster) -> None:
    cluster.olcore("setconf", '{"network": "nat", "docker": {"warm_pool": 1}}')
    cluster.start()
    assert cluster.call("hello", {"name": "Alice"}) == (200, "Hello, Alice!")


def test_memory_over_the_limit_is_told(cluster: Cluster) -> None:
    cluster.add("eater", "def handler(event):\n    return len(bytearray(b'x') * (512 << 20))\n")
    cluster.start()
    status, body = cluster.call("eater", {})
    assert status == 502
    assert "out of memory" in json.dumps(body)
    assert "128 MiB" in json.dumps(body)


def test_an_engine_that_stops_is_told_and_one_that_is_back_is_used(
    cluster: Cluster, engine: Any
) -> None:
    cluster.start()
    assert cluster.call("hello", {"name": "Alice"})[0] == 200
    engine.stop()
    try:
        status, body = cluster.call("hello", {"name": "Alice"})
        assert status in {502, 503}, body
        assert body["error"]["message"]
        status, body = cluster.call("hello", {"name": "Alice"})
        assert (status, "does not answer" in body["error"]["message"]) == (503, True)
    finally:
        engine.start()
    assert cluster.call("hello", {"name": "Bob"}) == (200, "Hello, Bob!")


def test_a_start_after_a_crash_clears_what_was_left(cluster: Cluster) -> None:
    cluster.start()
    assert cluster.call("hello", {"name": "Alice"})[0] == 200
    (old,) = cluster.containers()
    arbiter = int((cluster.root / "logs" / "worker-0.pid").read_text())
    os.killpg(os.getpgid(arbiter), signal.SIGKILL)
    cluster.start()
    assert cluster.call("hello", {"name": "Bob"}) == (200, "Hello, Bob!")
    assert [found["Id"] for found in cluster.containers()] != [old["Id"]]
    assert len(cluster.containers()) == 1
