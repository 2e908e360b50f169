"""Measures a cold start, from an HTTP client to the reply, over a bare fork of the same interpreter."""

from __future__ import annotations

import os
import statistics
import time

from bench.cluster import EXAMPLES, post, running

SAMPLES = 100
SPACING_S = 0.06
"""Joining a control group and refilling stem cells look quicker in a tight loop than they are for real requests."""


def bare_fork_ms() -> float:
    """Fork this interpreter, let the child exit, and wait for it."""
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return (time.perf_counter() - began) * 1e3


def main(_arguments: list[str]) -> None:
    """Print the p50 and p99 of both, and the ratio of the p50s."""
    with running({"sandbox": "sock"}) as cluster:
        # Each request gets an instance of its own, so that each is a cold start.
        cluster.add("hello", EXAMPLES / "hello", "reuse_sandbox = false\n")
        with cluster.connected() as connection:
            forks, starts = [], []
            for _ in range(SAMPLES):
                time.sleep(SPACING_S)
                forks.append(bare_fork_ms())
                began = time.perf_counter()
                post(connection, "hello", b'{"name": "Alice"}')
                starts.append((time.perf_counter() - began) * 1e3)
    fork, start = statistics.median(forks), statistics.median(starts)
    p99 = sorted(starts)[int(SAMPLES * 0.99) - 1]
    print(f"cold start, HTTP client to reply: p50 {start:.2f} ms, p99 {p99:.2f} ms")
    print(f"os.fork() + exit + wait:          p50 {fork:.2f} ms")
    print(
        f"ratio of the p50s: {start / fork:.2f} (a prototype without HTTP had 1.7; the bound is 5)"
    )
