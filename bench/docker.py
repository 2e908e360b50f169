"""Measures cold starts and the creation rate of SOCK against Docker, with and without containers started ahead.

All of it is one run on an engine of its own. Samples are taken in turn, each when the warm pool is full again, so that
nothing is measured while the engine works for another. Every sandbox has the same limits and the network ``none``, which
is Docker's quickest. The image is this machine's Python, which is what SOCK runs too.
"""

from __future__ import annotations

import asyncio
import platform
import statistics
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from bench.engine import private_engine
from bench.starts import ColdStarts, context_in
from ol_sandbox_docker.engine import Engine
from ol_sandbox_docker.image import import_host
from ol_sandbox_docker.pool import DockerPool
from ol_sandbox_docker.settings import DockerSettings
from ol_sandbox_sock.pool import SockPool
from ol_sandbox_sock.settings import SockSettings
from olcore.interfaces import Network

IMAGE = "olcore-bench"
SAMPLES = 15
SPACING_S = 0.2
"""The engine still clears up for a moment after it has answered; and joining a control group is quicker in a tight loop."""
IN_FLIGHT = 16
WARM_POOL = 16
"""One for each that is in flight."""
ROUNDS = 3
ROUND = {"sock": 320, "docker": 32, "docker, warm": 32}
"""Sandboxes in a round; the warm pool serves the first half of its 32 and as many more as it makes meanwhile."""


class _Benches:
    """The three pools; every one is started, and has a folder of its own."""

    def __init__(self, starts: dict[str, ColdStarts], warm: DockerPool) -> None:
        self._starts = starts
        self._warm = warm

    async def cold_starts(self) -> dict[str, list[float]]:
        """Milliseconds by name."""
        times: dict[str, list[float]] = {name: [] for name in self._starts}
        for _ in range(SAMPLES):
            for name, starts in self._starts.items():
                await self._warm.warm.full()
                await asyncio.sleep(SPACING_S)
                times[name].append(await starts.sample())
        return times

    async def rates(self) -> dict[str, list[float]]:
        """Sandboxes a second by name."""
        rates: dict[str, list[float]] = {name: [] for name in self._starts}
        for _ in range(ROUNDS):
            for name, starts in self._starts.items():
                await self._warm.warm.full()
                rates[name].append(await starts.rate(ROUND[name], IN_FLIGHT))
        return rates


async def _measure(url: str) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    settings = DockerSettings(base_url=url, image=IMAGE)
    ahead = DockerSettings(base_url=url, image=IMAGE, warm_pool=WARM_POOL)
    async with AsyncExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ol-bench-")))
        contexts = {
            name: context_in(top / str(number), Network.NONE) for number, name in enumerate(ROUND)
        }
        warm = DockerPool(contexts["docker, warm"], ahead)
        pools = {
            "sock": SockPool(contexts["sock"], SockSettings()),
            "docker": DockerPool(contexts["docker"], settings),
            "docker, warm": warm,
        }
        for pool in pools.values():
            stack.push_async_callback(pool.close)
            await pool.start()
        starts = {name: ColdStarts(contexts[name], pool) for name, pool in pools.items()}
        benches = _Benches(starts, warm)
        return await benches.cold_starts(), await benches.rates()


def _prepare(url: str) -> str:
    """Import the image, and say what engine it is."""
    engine = Engine(url, 60.0)
    try:
        import_host(engine, IMAGE, lambda _size: None)
        info = engine.info()
    finally:
        engine.close()
    return f"Docker {info['ServerVersion']} ({info['Driver']}, cgroup {info['CgroupVersion']}), Linux {platform.release()}, {info['NCPU']} cores"


def main(_arguments: list[str]) -> None:
    """Print the table: p50 of a cold start and the creation rate, each with its ratio to SOCK's."""
    with private_engine() as url:
        print(_prepare(url))
        times, rates = asyncio.run(_measure(url))
    p50 = {name: statistics.median(values) for name, values in times.items()}
    rate = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{'':14} {'cold start, p50':>16} {'over SOCK':>10} {'created/s':>10} {'SOCK over':>10}")
    for name in ROUND:
        slower = p50[name] / p50["sock"]
        fewer = statistics.median(
            ours / theirs for ours, theirs in zip(rates["sock"], rates[name], strict=True)
        )
        print(f"{name:14} {p50[name]:13.2f} ms {slower:9.1f}x {rate[name]:10.1f} {fewer:9.1f}x")
    print(
        f"cold start: {SAMPLES} samples each; created/s: median of {ROUNDS} rounds, {IN_FLIGHT} in flight, "
        f"each started, called and destroyed; warm pool: {WARM_POOL}"
    )
