"""Measures cold starts of handlers that import packages, with the import cache off, cold and warm, and from a snapshot.

Every request goes through HTTP to a real worker and is a cold start (``reuse_sandbox = false``). There are three workers,
which share the installed packages and are asked in turn: *off* has no import cache; *cold* has one in which there is no
zygote yet, as for the first request for a package; *warm* has one that has settled. Memory is asked for apart from
the samples, because adding it up takes longer for a process that has more. ``-- --figure PATH`` draws the table, too.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cluster import BenchCluster, olcore, post, running
from bench.figure import Bar, Row, draw

if TYPE_CHECKING:
    import http.client
    from collections.abc import Mapping, Sequence

ROUNDS = 34
TURNS = ("warm", "off", "warm", "cold", "warm")
"""Who is asked in a round, in order; so there are over 100 warm samples, and a p99 that is more than the slowest."""
STATES = ("off", "cold", "warm")
SPACING_S = 0.06
"""Joining a control group and refilling stem cells look quicker in a tight loop than they are for real requests."""
SETTLED_S = 4.0
"""A tree that has been the same for so long, with requests coming in, is complete."""
SET_UP_S = 2
SNAPSHOT = f"{SET_UP_S} s set-up"
IMPORTS = {
    "nothing": "",
    "requests": "requests",
    "numpy": "numpy",
    "pandas": "pandas",
    "scikit-learn": "sklearn.linear_model",
}
_HANDLER = """{statement}
def handler(event):
    if event != "memory":
        return 0
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty:"))
"""
_SET_UP = f"import time\ntime.sleep({SET_UP_S})\n"

Times = dict[tuple[str, str], list[float]]


class _Worker:
    """One worker, and one connection to it."""

    def __init__(self, stack: ExitStack, settings: Mapping[str, object]) -> None:
        self.cluster: BenchCluster = stack.enter_context(running(dict(settings)))
        for name, module in IMPORTS.items():
            self._add(name, f"import {module}" if module else "", "reuse_sandbox = false\n")
            if module:
                (self.cluster.root / "registry" / name / "packages.txt").write_text(f"{name}\n")
        self._add("without", _SET_UP, "reuse_sandbox = false\n")
        self._add("with", _SET_UP, "reuse_sandbox = false\nsnapshot = true\n")
        self._connection: http.client.HTTPConnection = stack.enter_context(self.cluster.connected())

    def _add(self, name: str, statement: str, settings: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "lambda_func.py").write_text(_HANDLER.format(statement=statement))
            self.cluster.add(name, Path(folder), settings)

    def sample(self, name: str) -> float:
        """Return the milliseconds of one cold start."""
        time.sleep(SPACING_S)
        began = time.perf_counter()
        post(self._connection, name, b"0")
        return (time.perf_counter() - began) * 1e3

    def memory_mb(self, name: str) -> float:
        """Say how much an instance has that it shares with nobody."""
        return int(post(self._connection, name, b'"memory"')) / 1024

    def zygotes(self) -> list[dict[str, Any]]:
        """Ask what the import cache keeps."""
        self._connection.request("GET", "/instances")
        told: dict[str, Any] = json.loads(self._connection.getresponse().read())
        zygotes: list[dict[str, Any]] = told["zygotes"]
        return zygotes

    def settle(self) -> None:
        """Call every handler until the cache makes no more zygotes."""
        seen: list[str] = []
        since_s = time.monotonic()
        while not seen or time.monotonic() - since_s < SETTLED_S:
            for name in IMPORTS:
                self.sample(name)
            now = [zygote["id"] for zygote in self.zygotes()]
            if now != seen:
                seen, since_s = now, time.monotonic()


def _measure() -> tuple[Times, dict[tuple[str, str], float], list[dict[str, Any]]]:
    with ExitStack() as stack:
        top = stack.enter_context(tempfile.TemporaryDirectory(prefix="olcore-"))
        common = {
            "sandbox": "sock",
            # Below the temporary folder, which is closed to the users that handlers run as.
            "packages_dir": f"{top}/packages",
            "limits": {"memory_mb": 512},
        }
        settings: dict[str, dict[str, object]] = {
            "off": {},
            # Too little for any zygote: a cache that stays as it is at the first request.
            "cold": {"import_cache": "tree", "tree": {"import_cache_mb": 1, "learn": False}},
            "warm": {"import_cache": "tree"},
        }
        workers = {state: _Worker(stack, common | more) for state, more in settings.items()}
        named = [name for name, module in IMPORTS.items() if module]
        olcore("install", f"--cluster={workers['off'].cluster.root}", *named)
        times = _snapshots(workers["off"])
        for worker in workers.values():
            for name in IMPORTS:
                worker.sample(name)
        workers["warm"].settle()
        if workers["cold"].zygotes():
            raise SystemExit("the cold cache is not cold: it has zygotes")
        for _ in range(ROUNDS):
            for state in TURNS:
                for name in IMPORTS:
                    times.setdefault((name, state), []).append(workers[state].sample(name))
        memory = {
            (name, state): workers[state].memory_mb(name) for name in IMPORTS for state in STATES
        }
        return times, memory, workers["warm"].zygotes()


def _snapshots(worker: _Worker) -> Times:
    without = [worker.sample("without") for _ in range(3)]
    while worker.sample("with") > SET_UP_S * 1e3:
        pass  # until the snapshot is there
    return {
        (SNAPSHOT, "off"): without,
        (SNAPSHOT, "warm"): [worker.sample("with") for _ in range(ROUNDS * TURNS.count("warm"))],
    }


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[int(len(values) * 0.99) - 1 if len(values) >= 100 else -1]


def _table(times: Times, memory: Mapping[tuple[str, str], float]) -> list[str]:
    """Write the lines of a Markdown table."""
    nothing = statistics.median(times["nothing", "warm"])
    lines = [
        "| imports | off, ms | cold, ms | warm, ms | warm over nothing | instance, off | instance, warm |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for name in [*IMPORTS, SNAPSHOT]:
        cells = []
        for state in STATES:
            values = times.get((name, state))
            said = f"{statistics.median(values):.1f} / {_p99(values):.1f}" if values else ""
            cells.append(said)
        cells.append(f"{statistics.median(times[name, 'warm']) / nothing:.2f}")
        for state in ("off", "warm"):
            mb = memory.get((name, state))
            cells.append(f"{mb:.1f} MiB" if mb is not None else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _zygotes(zygotes: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| zygote | forked from | modules | memory of its own |", "| --- | --- | --: | --: |"]
    named = {
        zygote["id"]: ", ".join(wheel.partition("-")[0] for wheel in zygote["wheels"])
        for zygote in zygotes
    }
    for zygote in zygotes:
        parent = named.get(zygote["parent"], "the empty zygote")
        lines.append(
            f"| {named[zygote['id']]} | {parent} | {zygote['modules']} | {zygote['memory_mb']} MiB |"
        )
    return lines


def _rows(times: Times) -> list[Row]:
    return [
        Row(
            name,
            [
                Bar(state, statistics.median(values), _p99(values))
                for state in STATES
                if (values := times.get((name, state)))
            ],
        )
        for name in [*IMPORTS, SNAPSHOT]
    ]


def main(arguments: list[str]) -> None:
    """Print the tables, and draw the first where ``--figure PATH`` says."""
    times, memory, zygotes = _measure()
    print(f"Python {platform.python_version()}, Linux {platform.release()}; p50 / p99\n")
    print("\n".join([*_table(times, memory), "", *_zygotes(zygotes)]))
    if arguments[:1] == ["--figure"]:
        title = "Cold start in ms, p50; the thin line ends at p99"
        Path(arguments[1]).write_text(draw(title, _rows(times)))
