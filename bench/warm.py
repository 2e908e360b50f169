"""Measures warm throughput at 16 connections, over the same function in-process in the same Falcon and gunicorn."""

from __future__ import annotations

import contextlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from bench.cluster import EXAMPLES, free_port, running

CONNECTIONS = 16
ROUNDS = 5
ROUND_S = 3
_SCRIPT = """wrk.method = "POST"
wrk.body = '{"name": "Alice"}'
wrk.headers["Content-Type"] = "application/json"
"""


@contextlib.contextmanager
def _in_process() -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "bench.inprocess", str(port)]
    with subprocess.Popen(command) as server:
        try:
            deadline = time.monotonic() + 20
            while True:
                try:
                    urllib.request.urlopen(
                        f"http://127.0.0.1:{port}/runLambda/hello", b'{"name": "Alice"}'
                    ).read()
                    break
                except OSError:
                    if time.monotonic() > deadline or server.poll() is not None:
                        raise
                    time.sleep(0.05)
            yield port
        finally:
            server.terminate()


def _requests_per_s(port: int, script: Path) -> float:
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{ROUND_S}", f"-s{script}"]
    said = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/runLambda/hello"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if "Non-2xx" in said:
        raise SystemExit(f"wrk saw errors:\n{said}")
    found = re.search(r"Requests/sec:\s+([0-9.]+)", said)
    if found is None:
        raise SystemExit(f"wrk printed no rate:\n{said}")
    return float(found.group(1))


def main(_arguments: list[str]) -> None:
    """Print both rates and their ratio, of rounds taken in turn."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk makes the load here; apt-get install wrk")
    rates: dict[str, list[float]] = {"olcore": [], "in-process": []}
    with (
        running({"sandbox": "sock"}) as cluster,
        _in_process() as port,
        tempfile.TemporaryDirectory() as folder,
    ):
        cluster.add("hello", EXAMPLES / "hello")
        script = Path(folder) / "post.lua"
        script.write_text(_SCRIPT)
        _requests_per_s(cluster.port, script)  # the cold starts
        for _ in range(ROUNDS):
            rates["olcore"].append(_requests_per_s(cluster.port, script))
            rates["in-process"].append(_requests_per_s(port, script))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in medians.items():
        print(
            f"{name:11} {rate:8.0f} requests/s at {CONNECTIONS} connections (wrk, median of {ROUNDS} rounds)"
        )
    ratios = [
        ours / theirs for ours, theirs in zip(rates["olcore"], rates["in-process"], strict=True)
    ]
    print(f"ratio: {statistics.median(ratios):.2f} (a prototype had 0.73; the bound is 0.55)")
