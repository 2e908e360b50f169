"""Real servers for the tests: nanio for the ordinary, moto for odd answers; each on a free port, stopped by its pid."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

KEY = "AKIATESTTESTTEST"
SECRET = "a-secret-that-is-never-shown"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < deadline
            time.sleep(0.02)  # a port gives no sign when it opens
        else:
            return


@contextmanager
def running(command: list[str], port: int, environment: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", *command],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until_listening(port, process)
        yield
    finally:
        process.kill()
        process.wait()


class Nanio:
    """One nanio server that can be stopped and started again on the same port and data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._running: AbstractContextManager[None] | None = None

    def make_bucket(self, name: str) -> str:
        (self.folder / name).mkdir(parents=True)
        return f"s3://{name}"

    def settings(self, url: str) -> dict[str, Any]:
        return {
            "url": url,
            "endpoint": self.endpoint,
            "key": KEY,
            "secret": SECRET,
            "region": "us-east-1",
        }

    def start(self) -> None:
        command = ["nanio", "serve", "--data-dir", str(self.folder), "--host", "127.0.0.1"]
        keys = {"NANIO_ACCESS_KEY": KEY, "NANIO_SECRET_KEY": SECRET}
        self._running = running([*command, "--port", str(self.port)], self.port, keys)
        self._running.__enter__()

    def stop(self) -> None:
        if self._running is not None:
            self._running.__exit__(None, None, None)
            self._running = None


@pytest.fixture(scope="session")
def shared_nanio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nanio]:
    """One server for all tests that do not stop it."""
    server = Nanio(tmp_path_factory.mktemp("nanio"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def nanio(tmp_path: Path) -> Iterator[Nanio]:
    """A server of the test's own."""
    server = Nanio(tmp_path / "nanio")
    server.folder.mkdir()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def bucket(shared_nanio: Nanio) -> str:
    """The URL of an empty bucket."""
    return shared_nanio.make_bucket(f"bucket-{uuid.uuid4().hex}")


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The address of moto's server."""
    port = free_port()
    with running(["moto.server", "-H", "127.0.0.1", "-p", str(port)], port, {}):
        yield f"http://127.0.0.1:{port}"
