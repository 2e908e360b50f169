"""A cluster in a temporary folder, with one worker on a free port, through the commands that users type."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


@dataclass(frozen=True)
class BenchCluster:
    """Where it is, and where its worker listens."""

    root: Path
    port: int

    def add(self, name: str, source: Path, settings: str = "") -> None:
        """Copy a handler into the registry, and add its ``olcore.toml``."""
        folder = self.root / "registry" / name
        shutil.copytree(source, folder)
        if settings:
            (folder / "olcore.toml").write_text(settings)

    @contextlib.contextmanager
    def connected(self) -> Iterator[http.client.HTTPConnection]:
        """Keep one connection to the worker."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            yield connection
        finally:
            connection.close()


def olcore(*arguments: str) -> str:
    """Run a command of olcore, and return what it printed."""
    command = [sys.executable, "-m", "olcore", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(settings: dict[str, object]) -> Iterator[BenchCluster]:
    """Make a cluster with *settings*, start a worker, and leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="olcore-") as top:
        root = Path(top) / "cluster"
        flag = f"--cluster={root}"
        olcore("new", flag)
        olcore("setconf", flag, json.dumps(settings))
        port = free_port()
        try:
            olcore("workers", flag, f"--port={port}")
            yield BenchCluster(root, port)
        finally:
            olcore("kill", flag)


def post(connection: http.client.HTTPConnection, name: str, body: bytes) -> bytes:
    """Call a handler, and return the reply's body; anything but 200 ends the program."""
    connection.request("POST", f"/runLambda/{name}", body)
    reply = connection.getresponse()
    data = reply.read()
    if reply.status != http.client.OK:
        raise SystemExit(f"POST /runLambda/{name}: {reply.status} {data.decode()}")
    return data
