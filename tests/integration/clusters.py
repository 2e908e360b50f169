"""A real cluster for tests: made, filled, called and killed through what users have."""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from olcore.testing.processes import descendants

DEADLINE_S = 30.0


@dataclass
class Answer:
    """What came back over HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        return found


@dataclass
class Cluster:
    """One cluster folder and the commands on it."""

    root: Path
    port: int
    settings: dict[str, object] = field(default_factory=dict)

    def olcore(
        self, command: str, *arguments: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run ``olcore COMMAND --cluster=... ARGUMENTS``."""
        line = [sys.executable, "-m", "olcore", command, f"--cluster={self.root}", *arguments]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=180)
        if check and done.returncode:
            raise AssertionError(f"{line}\n{done.stdout}{done.stderr}\n{self.log()}")
        return done

    def start(self, *arguments: str) -> None:
        """Start its workers, the first on the cluster's port."""
        self.olcore("workers", f"--port={self.port}", *arguments)

    def add(self, name: str, source: str, **files: str) -> None:
        """Put a handler into the registry by rename; other files by their name, ``_`` for ``.``."""
        folder = self.root / "registry" / name
        temporary = self.root / "registry" / f".new-{name}-{time.monotonic_ns()}"
        temporary.mkdir()
        (temporary / "lambda_func.py").write_text(source)
        for file, text in files.items():
            (temporary / file.replace("_", ".")).write_text(text)
        if folder.exists():
            folder.rename(self.root / "registry" / f".old-{name}-{time.monotonic_ns()}")
        temporary.rename(folder)

    def call(
        self, name: str, event: Any = None, *, port: int | None = None, timeout_s: float = 60.0
    ) -> Answer:
        """POST an event to a handler."""
        body = b"" if event is None else json.dumps(event).encode()
        return self.request("POST", f"/runLambda/{name}", body, port=port, timeout_s=timeout_s)

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        port: int | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> Answer:
        """Make one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body, headers or {})
            reply = connection.getresponse()
            return Answer(
                reply.status,
                {key.lower(): value for key, value in reply.getheaders()},
                reply.read(),
            )
        finally:
            connection.close()

    def instances(self, port: int | None = None) -> list[dict[str, Any]]:
        """List the live instances."""
        found: list[dict[str, Any]] = self.request("GET", "/instances", port=port).json["instances"]
        return found

    def deaths(self) -> list[dict[str, Any]]:
        """List the last deaths."""
        found: list[dict[str, Any]] = self.request("GET", "/instances").json["deaths"]
        return found

    def log(self, worker: str = "worker-0") -> str:
        """Read a worker's log."""
        file = self.root / "logs" / f"{worker}.out"
        return file.read_text() if file.exists() else ""

    def arbiter(self, worker: str = "worker-0") -> int:
        """Say which process gunicorn's arbiter is."""
        return int((self.root / "logs" / f"{worker}.pid").read_text())

    def worker_process(self, worker: str = "worker-0") -> int:
        """Say which process the worker itself is: the arbiter's child that has launchers."""
        return children(self.arbiter(worker))[0]


def children(pid: int) -> list[int]:
    """List the direct children of a process."""
    return sorted(child for child in descendants(pid) if parent(child) == pid)


def parent(pid: int) -> int:
    """Say who the parent of a process is; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def free_ports(count: int = 1) -> int:
    """Find the first of *count* ports in a row that nobody listens on."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first: int = probe.getsockname()[1]
        if all(_is_free(first + number) for number in range(count)):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def await_end(pids: Sequence[int], deadline_s: float = DEADLINE_S) -> None:
    """Wait until none of these processes is there; their pidfds tell."""
    end = time.monotonic() + deadline_s
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except OSError:  # gone; older kernels say EINVAL of one that is just ending
            continue
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            assert poll.poll(max(0.0, end - time.monotonic()) * 1000), (
                f"process {pid} is still there"
            )
        finally:
            os.close(fd)


def await_true(question: Any, what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Ask until the answer is true, and return it: for state that only HTTP tells, where no event can be waited for."""
    end = time.monotonic() + deadline_s
    while True:
        try:
            answer = question()
        except OSError:
            answer = None
        if answer:
            return answer
        assert time.monotonic() < end, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.02)
