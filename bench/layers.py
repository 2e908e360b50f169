"""Measures what each layer of a SOCK sandbox adds to a cold start, with and without stem cells.

Every row is measured in the same run, one sample of each in turn, at least 50 ms apart, because joining a control group is
slow only when the last time is a while ago (SOCK.md). The last row is the sandbox that users get.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec

from bench.starts import ColdStarts, context_in
from ol_sandbox_sock.pool import SockPool
from ol_sandbox_sock.settings import SockSettings
from olcore.interfaces import Limits, Network

SAMPLES = 40
SPACING_S = 0.06


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One row: a sandbox with some of its layers."""

    name: str
    network: Network
    seccomp: bool
    cgroup: bool


LAYERS = (
    Layer(name="namespaces", network=Network.HOST, seccomp=False, cgroup=False),
    Layer(name="+ cgroup", network=Network.HOST, seccomp=False, cgroup=True),
    Layer(name="+ seccomp", network=Network.HOST, seccomp=True, cgroup=True),
    Layer(name="+ network none", network=Network.NONE, seccomp=True, cgroup=True),
    Layer(name="+ network nat", network=Network.NAT, seccomp=True, cgroup=True),
)


class _NoCgroups:
    """Control groups that are none, for the rows without them."""

    enters_by_attach = False

    def make(self, _id: str, _limits: Limits) -> _NoCgroups:
        return self

    def entry_fds(self) -> list[int]:
        return []

    def oom_kills(self) -> int:
        return 0

    async def remove(self, _deadline_s: float = 0) -> None:
        """Nothing was made."""


async def _pool(stack: AsyncExitStack, folder: Path, layer: Layer, stem_cells: int) -> ColdStarts:
    context = context_in(folder, layer.network)
    settings = SockSettings(stem_cells=stem_cells, seccomp="on" if layer.seccomp else "off")
    pool = SockPool(context, settings)
    await pool.start()
    stack.push_async_callback(pool.close)
    if not layer.cgroup:
        # There is no setting for it, and there should be none: sandboxes without limits are for this table only.
        for source in pool._sources.values():
            source._cgroups = cast("Any", _NoCgroups())
    return ColdStarts(context, pool)


def _bare_fork() -> float:
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return (time.perf_counter() - began) * 1e3


async def _measure() -> dict[tuple[str, int], list[float]]:
    times: dict[tuple[str, int], list[float]] = {("os.fork() + wait", 0): []}
    with tempfile.TemporaryDirectory(prefix="ol-bench-") as top:
        async with AsyncExitStack() as stack:
            benches: dict[tuple[str, int], ColdStarts] = {}
            for stem_cells in (0, 3):
                for number, layer in enumerate(LAYERS):
                    folder = Path(top) / f"{number}-{stem_cells}"
                    benches[layer.name, stem_cells] = await _pool(stack, folder, layer, stem_cells)
            for _ in range(SAMPLES):
                times["os.fork() + wait", 0].append(_bare_fork())
                for key, bench in benches.items():
                    await asyncio.sleep(SPACING_S)
                    times.setdefault(key, []).append(await bench.sample())
    return times


def proof_ms(script: str, rootfs: str) -> float:
    """Run the bare proof, and return its own p50 of a cold start with a network namespace, in ms."""
    said = subprocess.run(
        [sys.executable, script, rootfs], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"net\s+cold start to first reply: p50 ([0-9.]+) ms", said)
    if found is None:
        raise SystemExit(f"{script} printed no p50: {said!r}")
    return float(found.group(1))


def main(arguments: list[str]) -> None:
    """Print the table; with ``PROOF ROOTFS`` compare with the bare proof, run before and after."""
    proofs = [proof_ms(*arguments)] if arguments else []
    times = asyncio.run(_measure())
    if arguments:
        proofs.append(proof_ms(*arguments))
    p50 = {key: statistics.median(values) for key, values in times.items()}
    fork = p50["os.fork() + wait", 0]
    print(
        f"{'layer':18} {'no stem cells':>16} {'3 stem cells':>16}   (p50 ms, and over os.fork() + wait)"
    )
    print(f"{'os.fork() + wait':18} {fork:9.2f} ms")
    for layer in LAYERS:
        cells = [p50[layer.name, stem_cells] for stem_cells in (0, 3)]
        print(f"{layer.name:18} " + " ".join(f"{ms:9.2f} {ms / fork:5.1f}x" for ms in cells))
    if proofs:
        proof = statistics.mean(proofs)
        whole = p50[LAYERS[-1].name, 3]
        print(
            f"bare proof, with a network namespace: {proof:.2f} ms; the whole over it: {whole - proof:+.2f} ms"
        )
    print(
        msgspec.json.encode(
            {f"{name}, {stems}": round(ms, 3) for (name, stems), ms in p50.items()}
        ).decode()
    )
