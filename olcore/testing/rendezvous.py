"""The worker's end of a sandbox's rendezvous, in its plainest form, for tests of sandbox backends."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from olcore.errors import OlcoreError
from olcore.guest import protocol
from olcore.interfaces import Death, Limits, Network, Sandbox, SandboxPool, SandboxSpec

DEADLINE_S = 20.0
"""No step of a test takes longer, unless something hangs."""


class GuestError(Exception):
    """The guest answered with an error frame.

    Args:
        said: Its JSON object, with ``code`` and ``message``.
    """

    def __init__(self, said: dict[str, Any]) -> None:
        super().__init__(f"{said.get('code')}: {said.get('message')}\n{said.get('traceback', '')}")
        self.said = said


class HungUpError(Exception):
    """The guest ended the connection where a frame was expected."""


@dataclass(kw_only=True)
class Instance:
    """A sandbox, and the worker's end of the connection to the guest in it."""

    spec: SandboxSpec
    sandbox: Sandbox
    connection: socket.socket
    host: str
    """Where its scratch folder is, as seen from inside."""
    handler: str
    """Where its code is, as seen from inside."""
    hello: dict[str, Any] = field(default_factory=dict)
    """What the guest said first."""

    async def call(self, event: Any = None) -> Any:
        """Send one event, and return the handler's result.

        Raises:
            GuestError: The handler raised, or could not be loaded.
            HungUpError: The guest died.
        """
        await self.send(protocol.EVENT, json.dumps({} if event is None else event).encode())
        kind, payload = await self.receive()
        value = json.loads(payload)
        if kind == protocol.ERROR:
            raise GuestError(value)
        return value

    async def send(self, kind: int, payload: bytes) -> None:
        """Send one frame."""
        async with asyncio.timeout(DEADLINE_S):
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(self.connection, protocol.frame(kind, payload))

    async def receive(self) -> tuple[int, bytes]:
        """Read one frame, and return its kind and payload."""
        async with asyncio.timeout(DEADLINE_S):
            header = await self._exactly(protocol.HEADER.size)
            size, kind, _flags, _stream = protocol.HEADER.unpack(header)
            return kind, await self._exactly(size)

    async def wait(self) -> Death:
        """Wait for the sandbox's death, with a deadline."""
        async with asyncio.timeout(DEADLINE_S):
            return await self.sandbox.wait()

    @property
    def pid(self) -> int:
        """The process that connected, as the host numbers it."""
        packed = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int(struct.unpack("3i", packed)[0])

    def text(self, name: str) -> str:
        """Read the file *name* in its scratch folder from the host's side."""
        return (self.spec.scratch / name).read_text()

    async def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                part = await asyncio.get_running_loop().sock_recv(self.connection, size - len(data))
            except ConnectionResetError:
                part = b""
            if not part:
                raise HungUpError(f"{self.spec.id}: {len(data)} of {size} bytes, then nothing")
            data += part
        return data


class Rig:
    """Starts sandboxes of one pool as a worker does, and clears them away.

    Args:
        pool: A pool that has been started.
        folder: An empty folder to work in.
        isolated: Whether the sandbox maps its folders to ``/host`` and ``/handler``.
    """

    def __init__(self, pool: SandboxPool, folder: Path, *, isolated: bool = True) -> None:
        self.pool = pool
        self.folder = folder
        self._isolated = isolated
        self._count = 0
        self._instances: list[Instance] = []
        self._scratches: list[Path] = []

    def spec(self, source: str | dict[str, str], **fields: Any) -> SandboxSpec:
        """Write a handler's code down, and describe a sandbox for it whose scratch folder is not made yet.

        Args:
            source: The text of ``lambda_func.py``, or of several files by their names.
            **fields: Fields of ``SandboxSpec``.
        """
        self._count += 1
        name = f"{self._count}"
        code = self.folder / f"code-{name}"
        code.mkdir()
        files = {"lambda_func.py": source} if isinstance(source, str) else source
        for file, text in files.items():
            (code / file).parent.mkdir(exist_ok=True)
            (code / file).write_text(text)
        values: dict[str, Any] = {
            "id": name,
            "handler": "contract",
            "code": code,
            "scratch": self.folder / f"scratch-{name}",
            "limits": Limits(),
            "network": Network.NONE,
        }
        return SandboxSpec(**{**values, **fields})

    async def connect(self, spec: SandboxSpec) -> Instance:
        """Make the scratch folder and the sandbox of *spec*, and wait for the guest's hello."""
        await self.pool.make_scratch(spec.scratch, spec.limits)
        self._scratches.append(spec.scratch)
        with _listener(spec.scratch) as listener:
            sandbox = await self.pool.create(spec)
            connection = await _accepted(listener, sandbox)
        instance = Instance(
            spec=spec,
            sandbox=sandbox,
            connection=connection,
            host="/host" if self._isolated else str(spec.scratch),
            handler="/handler" if self._isolated else str(spec.code),
        )
        self._instances.append(instance)
        kind, payload = await instance.receive()
        assert kind == protocol.HELLO, f"the first frame is of kind {kind}, not HELLO"
        instance.hello = json.loads(payload)
        return instance

    async def run(
        self,
        source: str | dict[str, str],
        *,
        environment: dict[str, str] | None = None,
        sys_path: tuple[str, ...] = (),
        **fields: Any,
    ) -> Instance:
        """Start a handler, and return when it can serve.

        Raises:
            GuestError: It cannot be loaded.
        """
        instance = await self.connect(self.spec(source, **fields))
        settings = {
            "protocol": protocol.VERSION,
            "handler": instance.spec.handler,
            "entry": None,
            "sys_path": list(sys_path),
            "environment": environment or {},
            "max_result_bytes": 6 << 20,
            "measure_imports": False,
        }
        await instance.send(protocol.INIT, json.dumps(settings).encode())
        kind, payload = await instance.receive()
        if kind == protocol.ERROR:
            raise GuestError(json.loads(payload))
        assert kind == protocol.READY, f"INIT is answered with kind {kind}, not READY"
        return instance

    async def close(self) -> None:
        """Destroy every sandbox, and remove every scratch folder."""
        for instance in self._instances:
            instance.connection.close()
            await instance.sandbox.destroy()
        for scratch in self._scratches:
            await self.pool.remove_scratch(scratch)
        with suppress(FileNotFoundError):
            shutil.rmtree(self.folder)


def _listener(scratch: Path) -> socket.socket:
    folder = os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        # Through a descriptor, because a Unix socket's path has at most 108 bytes and pytest's folders are deep.
        listener.bind(f"/proc/self/fd/{folder}/server_pipe")
        (scratch / "server_pipe").chmod(0o666)
        for name in ("stdout", "stderr"):
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW
            os.close(os.open(name, flags, 0o666, dir_fd=folder))
            (scratch / name).chmod(0o666)
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(folder)
    return listener


async def _accepted(listener: socket.socket, sandbox: Sandbox) -> socket.socket:
    accept = asyncio.ensure_future(asyncio.get_running_loop().sock_accept(listener))
    death = asyncio.ensure_future(sandbox.wait())
    try:
        done, _ = await asyncio.wait(
            {accept, death}, timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED
        )
        if accept in done:
            return accept.result()[0]
        died = f"it {death.result()}" if death in done else "it never connected"
    finally:
        for future in {accept, death} - {f for f in (accept, death) if f.done()}:
            future.cancel()
            with suppress(asyncio.CancelledError, OlcoreError):
                await future
    await sandbox.destroy()
    raise AssertionError(f"no guest: {died}")
