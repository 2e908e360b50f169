"""Measures cold starts of handlers that import packages, with the import cache off, cold and warm, and of a snapshot.

Every request is a cold start (``reuse_sandbox = false``), through HTTP, on a real worker. *Off* is a worker without an import
cache; *cold* is the first request after a start of a worker that has learned nothing; *warm* is a worker that has. The warm
and the off samples are taken in turn. ``-- --figure PATH`` draws the table as SVG.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cluster import BenchCluster, olcore, running

if TYPE_CHECKING:
    import http.client

SAMPLES = 30
RESTARTS = 5
SPACING_S = 0.06
SETUP_S = 2
IMPORTS = {
    "nothing": "",
    "requests": "requests",
    "numpy": "numpy",
    "pandas": "pandas",
    "scikit-learn": "sklearn.linear_model",
}
_SOURCE = """{statement}
def handler(event):
    private = 0
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith(("Private_Clean:", "Private_Dirty:")):
            private += int(line.split()[1])
    return private
"""
_SETTINGS = "reuse_sandbox = false\n[limits]\nmemory_mb = 512\n"
_STATES = ("off", "cold", "warm")


def _add_handlers(cluster: BenchCluster) -> None:
    for name, module in IMPORTS.items():
        statement = f"import {module}" if module else ""
        _add(cluster, name, _SOURCE.format(statement=statement), _SETTINGS)
        if module:
            (cluster.root / "registry" / name / "packages.txt").write_text(f"{name}\n")
    slow = f"import time\ntime.sleep({SETUP_S})\ndef handler(event):\n    return 0\n"
    _add(cluster, "snapshot", slow, f"snapshot = true\n{_SETTINGS}")


def _add(cluster: BenchCluster, name: str, source: str, settings: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "lambda_func.py").write_text(source)
        cluster.add(name, Path(folder), settings)


def _call(connection: http.client.HTTPConnection, name: str) -> tuple[float, int]:
    """Return the milliseconds of one call, and the instance's private memory in KiB."""
    began = time.perf_counter()
    connection.request("POST", f"/runLambda/{name}", b"{}")
    reply = connection.getresponse()
    body = reply.read()
    took_ms = (time.perf_counter() - began) * 1e3
    if reply.status != 200:
        raise SystemExit(f"{name}: {reply.status} {body.decode()}")
    return took_ms, int(body)


def _settle(cluster: BenchCluster, connection: http.client.HTTPConnection) -> None:
    """Call every handler until the cache makes no more zygotes."""
    seen, quiet = -1, 0
    while quiet < 3:
        for name in IMPORTS:
            _call(connection, name)
        time.sleep(1)
        now = len(list((cluster.root / "workers/worker-0/import-cache").glob("*")))
        quiet = quiet + 1 if now == seen else 0
        seen = now


def _cold(cluster: BenchCluster, times: dict[tuple[str, str], list[float]]) -> None:
    for _ in range(RESTARTS):
        flag = f"--cluster={cluster.root}"
        olcore("kill", flag)
        for learned in (cluster.root / "workers").glob("*/tree*"):
            shutil.rmtree(learned)
        olcore("workers", flag, f"--port={cluster.port}")
        with cluster.connected() as connection:
            for name in IMPORTS:
                times.setdefault((name, "cold"), []).append(_call(connection, name)[0])


def _measure() -> tuple[dict[tuple[str, str], list[float]], dict[tuple[str, str], int]]:
    times: dict[tuple[str, str], list[float]] = {}
    memory: dict[tuple[str, str], int] = {}
    off: dict[str, object] = {"sandbox": "sock", "import_cache": "", "package_timeout_s": 600}
    with running(off) as plain, running({**off, "import_cache": "tree"}) as cached:
        for cluster in (plain, cached):
            _add_handlers(cluster)
            with cluster.connected() as connection:
                for name in IMPORTS:
                    _call(connection, name)  # installs its packages
        _cold(cached, times)
        with plain.connected() as without, cached.connected() as with_cache:
            _settle(cached, with_cache)
            for _ in range(SAMPLES):
                for name in IMPORTS:
                    for state, connection in (("off", without), ("warm", with_cache)):
                        time.sleep(SPACING_S)
                        took_ms, private_kb = _call(connection, name)
                        times.setdefault((name, state), []).append(took_ms)
                        memory[name, state] = private_kb
            _snapshots(with_cache, times)
    return times, memory


def _snapshots(
    connection: http.client.HTTPConnection, times: dict[tuple[str, str], list[float]]
) -> None:
    first, _ = _call(connection, "snapshot")
    times["2 s of set-up", "off"] = [first]
    while _call(connection, "snapshot")[0] > SETUP_S * 500:
        time.sleep(0.5)  # the snapshot is being made
    for _ in range(SAMPLES):
        time.sleep(SPACING_S)
        times.setdefault(("2 s of set-up", "warm"), []).append(_call(connection, "snapshot")[0])


def main(arguments: list[str]) -> None:
    """Print the table, and draw it where ``--figure PATH`` says."""
    times, memory = _measure()
    p50 = {key: statistics.median(values) for key, values in times.items()}
    p99 = {
        key: max(values) if len(values) < 100 else sorted(values)[-2]
        for key, values in times.items()
    }
    nothing = p50["nothing", "warm"]
    print("p50 / worst ms of a cold start; private MiB of an instance")
    print(
        f"{'imports':16}"
        + "".join(f"{state:>18}" for state in _STATES)
        + "   warm over nothing   MiB off, warm"
    )
    for name in [*IMPORTS, "2 s of set-up"]:
        cells = [
            f"{p50[name, state]:9.1f}/{p99[name, state]:7.1f}" if (name, state) in p50 else " " * 17
            for state in _STATES
        ]
        used = [memory.get((name, state), 0) / 1024 for state in ("off", "warm")]
        said = f"{used[0]:8.1f} {used[1]:6.1f}" if used[0] else ""
        print(f"{name:16} " + " ".join(cells) + f"{p50[name, 'warm'] / nothing:15.2f}x   {said}")
    if arguments[:1] == ["--figure"]:
        Path(arguments[1]).write_text(figure(p50))
    print(json.dumps({f"{name}, {state}": round(ms, 2) for (name, state), ms in p50.items()}))


def figure(p50: dict[tuple[str, str], float]) -> str:
    """Draw the medians as bars on a logarithmic scale, 1 ms to 10 s."""
    colours = {"off": "#b0b7c3", "cold": "#e0a458", "warm": "#3a7d44"}
    rows = list(dict.fromkeys(name for name, _ in p50))
    left, unit, bar = 110, 130, 14
    parts = []
    y = 40
    for name in rows:
        parts.append(f'<text x="{left - 8}" y="{y + 26}" text-anchor="end">{name}</text>')
        for state in _STATES:
            if (name, state) in p50:
                ms = p50[name, state]
                width = max(2.0, _log10(ms) * unit)
                parts.append(
                    f'<rect x="{left}" y="{y}" width="{width:.0f}" height="{bar - 2}" fill="{colours[state]}"/>'
                )
                parts.append(
                    f'<text x="{left + width + 5:.0f}" y="{y + 10}" font-size="10">{ms:.1f} ms</text>'
                )
            y += bar
        y += 10
    for power in range(5):
        x = left + power * unit
        parts.append(f'<line x1="{x}" y1="30" x2="{x}" y2="{y}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{x}" y="{y + 14}" text-anchor="middle" font-size="10">{10**power} ms</text>'
        )
    for number, state in enumerate(_STATES):
        parts.append(
            f'<rect x="{left + number * 90}" y="10" width="12" height="12" fill="{colours[state]}"/>'
        )
        parts.append(f'<text x="{left + 17 + number * 90}" y="20">{state}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + 4 * unit + 80}" height="{y + 25}" font-family="sans-serif" font-size="12">'
    return head + '<rect width="100%" height="100%" fill="white"/>' + "".join(parts) + "</svg>\n"


def _log10(ms: float) -> float:
    return math.log10(max(ms, 1.0))
