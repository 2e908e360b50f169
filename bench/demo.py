"""Runs a real function from nothing, as ``make demo`` promises."""

from __future__ import annotations

import shlex
import shutil
import statistics
import subprocess
import time

from bench.cluster import EXAMPLES, post, running

CALLS = 200
BODY = '{"name": "Alice"}'


def main() -> None:
    """Print the curl command and its answer, then the first and the median latency."""
    with running({"sandbox": "sock", "registry": "local"}) as cluster:
        print(f"A worker listens on port {cluster.port}; its cluster is {cluster.root}")
        cluster.add("hello", EXAMPLES / "hello")
        with cluster.connected() as connection:
            connection.connect()
            time.sleep(0.1)  # a folder that was written a moment ago is looked at twice
            began = time.perf_counter()
            post(connection, "hello", BODY.encode())
            first_ms = (time.perf_counter() - began) * 1e3
            command = ["curl", "-sS", "-X", "POST", f"localhost:{cluster.port}/runLambda/hello"]
            command += ["-d", BODY]
            print(f"$ {shlex.join(command)}")
            print(_answer(command) or post(connection, "hello", BODY.encode()).decode())
            times = []
            for _ in range(CALLS):
                began = time.perf_counter()
                post(connection, "hello", BODY.encode())
                times.append((time.perf_counter() - began) * 1e3)
        print(
            f"first call (cold start): {first_ms:.1f} ms; median of {CALLS} warm calls: {statistics.median(times):.2f} ms"
        )
    print("The worker is stopped, and nothing is left.")


def _answer(command: list[str]) -> str:
    """Run *command*; nothing comes back on a machine that has no curl."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
