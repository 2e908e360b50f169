"""Times cold starts of one sandbox pool, without a worker above it.

A cold start is the time from asking for the scratch folder to the reply to the first event, as a worker does it; removing the
sandbox is not in it.
"""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

from olcore.guest import protocol
from olcore.interfaces import Limits, Network, SandboxPool, SandboxSpec, WorkerContext

_HELLO = "def handler(event):\n    return 'Hello, ' + event['name']\n"
_EVENT = protocol.frame(protocol.EVENT, b'{"name": "Alice"}')
_INIT = protocol.frame(protocol.INIT, b'{"handler": "hello", "environment": {}}')


def context_in(folder: Path, network: Network) -> WorkerContext:
    """Make *folder* for a worker, with a handler's code in it."""
    folder.mkdir()
    for name in ("worker", "base", "packages", "code"):
        (folder / name).mkdir()
    (folder / "code" / "lambda_func.py").write_text(_HELLO)
    return WorkerContext(
        cluster_name=str(folder),
        worker_name="bench",
        worker_dir=folder / "worker",
        base_dir=folder / "base",
        packages_dir=folder / "packages",
        limits=Limits(),
        network=network,
    )


class ColdStarts:
    """Starts sandboxes of one pool.

    Args:
        context: What ``context_in`` made, and the pool was made for.
        pool: A pool that has been started.
    """

    def __init__(self, context: WorkerContext, pool: SandboxPool) -> None:
        self._context = context
        self._folder = context.worker_dir.parent
        self._pool = pool
        self._count = 0

    async def sample(self) -> float:
        """Return the milliseconds of one cold start; may run several times at once."""
        self._count += 1
        scratch = self._folder / f"scratch-{self._count}"
        spec = SandboxSpec(
            id=str(self._count),
            handler="hello",
            code=self._folder / "code",
            scratch=scratch,
            limits=self._context.limits,
            network=self._context.network,
        )
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        await self._pool.make_scratch(scratch, spec.limits)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(scratch / "server_pipe"))
            (scratch / "server_pipe").chmod(0o666)
            listener.listen(1)
            listener.setblocking(False)
            for name in ("stdout", "stderr"):
                (scratch / name).touch()
                (scratch / name).chmod(0o666)
            sandbox = await self._pool.create(spec)
            connection, _ = await loop.sock_accept(listener)
        with connection:
            await loop.sock_sendall(connection, _INIT + _EVENT)
            await _reply(connection)
        took_ms = (time.perf_counter() - began) * 1e3
        await sandbox.destroy()
        await self._pool.remove_scratch(scratch)
        return took_ms

    async def rate(self, count: int, in_flight: int) -> float:
        """Return how many sandboxes a second are started, called and destroyed, of *count*, *in_flight* at a time."""
        left = iter(range(count))

        async def some() -> None:
            for _ in left:
                await self.sample()

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(some())
        return count / (time.perf_counter() - began)


async def _reply(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    data = b""
    while True:
        part = await loop.sock_recv(connection, 65536)
        if not part:
            raise SystemExit(f"a guest hung up instead of answering; it said {data!r}")
        data += part
        rest = data
        while len(rest) >= protocol.HEADER.size:
            size, kind, _, _ = protocol.HEADER.unpack_from(rest)
            if kind == protocol.ERROR:
                raise SystemExit(f"a handler failed: {rest!r}")
            if kind == protocol.REPLY:
                return
            rest = rest[protocol.HEADER.size + size :]
