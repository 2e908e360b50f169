"""A manager of handlers over fakes."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from olcore.builtin.lifo import Lifo
from olcore.cluster import WorkerDir
from olcore.handlers.manager import Manager, Options, Reply
from olcore.interfaces import ImportCache, Limits, Network, Scheduler
from olcore.testing.fakes import FakePool, FakeRegistry

DEADLINE_S = 20.0


class House:
    """One manager over fakes, its operator's hand, and a list of the events that it told."""

    def __init__(self, folder: Path) -> None:
        self.worker_dir = WorkerDir(folder / "worker-0")
        self.worker_dir.root.mkdir()
        self.pool = FakePool()
        self.registry = FakeRegistry()
        self.scheduler: Scheduler = Lifo()
        self.import_cache: ImportCache | None = None
        self.packages: Any = None
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.options = Options(
            limits=Limits(timeout_s=10.0),
            max_limits=Limits(memory_mb=1024, timeout_s=60.0),
            network=Network.NONE,
            max_instances=4,
            max_queue=10,
            idle_timeout_s=300.0,
            pause_after_ms=0,
            memory_pool_mb=4096,
            registry_cache_ms=5000,
            max_bundle_mb=250,
            max_bundle_files=20000,
            packages_dir=folder / "packages",
        )
        self._told = asyncio.Condition()
        self._numbers = itertools.count(1)
        self._manager: Manager | None = None

    @property
    def manager(self) -> Manager:
        assert self._manager is not None
        return self._manager

    async def open(self, **options: Any) -> Manager:
        """Start the manager, with *options* in place of the usual ones."""
        self.options = msgspec.structs.replace(self.options, **options)
        await self.pool.start()
        await self.registry.start()
        self._manager = Manager(
            pool=self.pool,
            registry=self.registry,
            scheduler=self.scheduler,
            import_cache=self.import_cache,
            packages=self.packages,
            options=self.options,
            worker_dir=self.worker_dir,
            emit=self._emit,
        )
        await self._manager.start()
        return self._manager

    async def close(self) -> None:
        if self._manager is not None:
            await self._manager.close(0.0)
            assert not list(self.worker_dir.handlers.glob("*/*")), "scratch folders are left"
        await self.registry.close()
        await self.pool.close()

    def put_hello(self, word: str = "Hello") -> str:
        """Store a handler ``hello`` that greets with *word*, and return its version."""
        source = f"def handler(event):\n    return f\"{word}, {{event.get('name')}}!\"\n"
        return self.registry.put("hello", source).version

    async def reply(self, name: str, event: Any = None) -> Reply:
        body = b"" if event is None else json.dumps(event).encode()
        async with asyncio.timeout(DEADLINE_S):
            return await self.manager.invoke(name, body, f"r{next(self._numbers)}")

    async def call(self, name: str, event: Any = None) -> Any:
        return json.loads((await self.reply(name, event)).result)

    def begin(self, name: str, event: Any = None) -> asyncio.Task[Any]:
        return asyncio.ensure_future(self.call(name, event))

    def told(self, hook: str) -> list[dict[str, Any]]:
        return [arguments for name, arguments in self.events if name == hook]

    def ends(self) -> list[str]:
        return [told["reason"].reason for told in self.told("ol_instance_destroyed")]

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until *holds* after some event."""
        async with asyncio.timeout(DEADLINE_S), self._told:
            await self._told.wait_for(holds)

    async def ended(self, number: int = 1) -> list[str]:
        """Wait until *number* instances are gone, and say why they went."""
        await self.until(lambda: len(self.ends()) >= number)
        return self.ends()

    def states(self) -> list[str]:
        return sorted(str(instance["state"]) for instance in self.manager.describe())

    @staticmethod
    async def turns() -> None:
        """Let every task run until it waits for something outside; the fakes of the registry never do."""
        for _ in range(20):
            await asyncio.sleep(0)

    def _emit(self, hook: str, **arguments: Any) -> None:
        self.events.append((hook, arguments))
        self._waking = asyncio.ensure_future(self._wake())

    async def _wake(self) -> None:
        async with self._told:
            self._told.notify_all()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    yield house
    await house.close()


GATED = """
import json, os, socket

def handler(event):
    # Says that it runs, then waits until the test lets it go.
    with socket.socket(socket.AF_UNIX) as gate:
        gate.connect("\\0" + event["gate"])
        gate.sendall(json.dumps(event["id"]).encode() + b"\\n")
        gate.recv(1)
    return [event["id"], VERSION, os.getpid()]

VERSION = 1
"""


class Gate:
    """Calls of a handler that waits, each until it is told to go on."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.address = f"ol-gate-{os.getpid()}-{id(self)}"
        self.tasks: dict[str, asyncio.Task[Any]] = {}
        self._inside: dict[str, asyncio.Future[asyncio.StreamWriter]] = {}
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        # An abstract address: pytest's folders are too deep for a socket's path.
        self._server = await asyncio.start_unix_server(self._entered, "\0" + self.address)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for inside in self._inside.values():
            if inside.done() and not inside.cancelled():
                inside.result().close()
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    def put(self, name: str = "gated", *, version: int = 1, more: str = "") -> None:
        self.house.registry.put(name, GATED.replace("VERSION = 1", f"VERSION = {version}") + more)

    def begin(self, call: str, name: str = "gated") -> asyncio.Task[Any]:
        """Send a request called *call*."""
        self._inside[call] = asyncio.get_running_loop().create_future()
        self.tasks[call] = self.house.begin(name, {"gate": self.address, "id": call})
        return self.tasks[call]

    def is_inside(self, call: str) -> bool:
        return self._inside[call].done()

    async def inside(self, call: str, name: str = "gated") -> asyncio.Task[Any]:
        """Wait until the handler runs for *call*, which is sent if it has not been."""
        task = self.tasks.get(call) or self.begin(call, name)
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.wait({self._inside[call], task}, return_when=asyncio.FIRST_COMPLETED)
        if not self._inside[call].done():
            task.result()
        return task

    async def go(self, call: str) -> Any:
        """Let the handler return, and return what it said."""
        async with asyncio.timeout(DEADLINE_S):
            (await self._inside[call]).write(b"g")
            return await self.tasks[call]

    async def _entered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._inside[json.loads(await reader.readline())].set_result(writer)


@pytest.fixture
async def gate(house: House) -> AsyncIterator[Gate]:
    gate = Gate(house)
    await gate.open()
    gate.put()
    yield gate
    await gate.close()
