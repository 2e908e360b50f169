"""Escape and interference attempts, each of which must fail in its expected way, on any sandbox backend.

The attempts are handlers (olcore/testing/attack_handlers); this is the host's side. Each is made in a sandbox of its own,
beside a second sandbox that must not notice::

    class TestDockerAttacks(AttackSuite):
        exempt: ClassVar = {"set_up_an_io_ring": "Docker before 25 allows io_uring"}

        @pytest.fixture
        async def pool(self, context): ...
"""

from __future__ import annotations

import hashlib
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

from olcore.interfaces import DeathCause, Limits, Network
from olcore.testing import attack_handlers
from olcore.testing.attack_handlers import (
    files,
    kernel,
    network,
    privileges,
    processes,
    resources,
)
from olcore.testing.processes import is_running
from olcore.testing.rendezvous import HungUpError, Instance, Rig
from olcore.testing.sandbox import SandboxFixtures

_MODULES = (files, kernel, network, privileges, processes, resources)  # importing them fills ALL
ALL = attack_handlers.ATTACKS
OVER_THE_NETWORK = sorted(
    name for name, attack in ALL.items() if attack.function.__module__ == network.__name__
)
ELSEWHERE = sorted(set(ALL) - set(OVER_THE_NETWORK))

_ATTACKER = """
from attack_handlers import files, kernel, network, privileges, processes, resources, run
def handler(event):
    return run(event["attack"], event)
"""

_VICTIM = """
import ctypes, os, socket
listener = socket.socket()
listener.bind(("0.0.0.0", 0))
listener.listen()
secret = os.environ["SECRET"]
def handler(event):
    if event == "where":
        probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            probe.connect(("192.0.2.1", 9))
            addresses = [probe.getsockname()[0]]
        except OSError:
            addresses = []
        return {"port": listener.getsockname()[1], "addresses": addresses}
    inotify = ctypes.CDLL(None, use_errno=True).inotify_init()
    if inotify < 0:
        return "no inotify instance: " + os.strerror(ctypes.get_errno())
    os.close(inotify)
    first, second = os.pipe()
    os.set_blocking(second, False)
    written = os.write(second, bytes(1 << 16))
    os.close(first)
    os.close(second)
    return "well" if written == 1 << 16 else f"a pipe holds only {written} bytes"
"""


class AttackSuite(SandboxFixtures):
    """Every attempt, over the sandbox interface."""

    exempt: ClassVar[Mapping[str, str]] = {}
    """What a backend cannot stop, each with the reason."""
    networks: ClassVar[tuple[Network, ...]] = (Network.NONE, Network.NAT)
    """The kinds of network whose promises are tried."""
    limits = Limits(memory_mb=192, max_processes=32, scratch_mb=16, tmp_mb=16)

    @pytest.fixture
    def host(self, tmp_path: Path) -> Iterator[dict[str, Any]]:
        """What of the host an attempt can aim at: a server on every address, an abstract socket, a file."""
        file = tmp_path / f"host-file-{secrets.token_hex(4)}"
        file.write_text("the host's")
        with ExitStack() as undo:
            server = undo.enter_context(socket.socket())
            server.bind(("0.0.0.0", 0))  # noqa: S104 - it stands for a worker that listens everywhere
            server.listen()
            abstract = undo.enter_context(socket.socket(socket.AF_UNIX))
            abstract_name = f"ol-attack-{secrets.token_hex(4)}"
            abstract.bind("\0" + abstract_name)
            abstract.listen()
            yield {
                "host_file": str(file),
                "worker_port": server.getsockname()[1],
                "host_addresses": _own_addresses(),
                "abstract_name": abstract_name,
            }

    @pytest.fixture
    def secret(self) -> str:
        """What the victim is told in its environment."""
        return secrets.token_hex(16)

    @pytest.mark.parametrize("name", ELSEWHERE)
    async def test_an_attempt_fails_as_expected(
        self, name: str, rig: Rig, host: dict[str, Any], secret: str, worker_secret: str
    ) -> None:
        await self._attempt(
            name, Network.NONE, rig, {**host, **_hashes(secret, worker_secret)}, secret
        )

    @pytest.mark.parametrize("name", OVER_THE_NETWORK)
    @pytest.mark.parametrize("kind", [Network.NONE, Network.NAT])
    async def test_an_attempt_over_the_network_fails_as_expected(
        self, name: str, kind: Network, rig: Rig, host: dict[str, Any], secret: str
    ) -> None:
        if kind not in self.networks:
            pytest.skip(f"this backend is not tried with network {kind.value!r}")
        await self._attempt(name, kind, rig, host, secret)

    async def test_the_victim_is_where_the_attempts_aim(self, rig: Rig, secret: str) -> None:
        """Or else an attempt could fail only because it missed."""
        victim = await self._victim(rig, Network.NONE, secret)
        assert is_running(victim.pid)
        assert (await victim.call("where"))["port"] > 0
        environ = Path(f"/proc/{victim.pid}/environ").read_bytes()
        assert secret.encode() not in environ

    async def _victim(self, rig: Rig, kind: Network, secret: str) -> Instance:
        return await rig.run(
            _VICTIM, environment={"SECRET": secret}, network=kind, limits=self.limits
        )

    async def _attempt(
        self, name: str, kind: Network, rig: Rig, event: dict[str, Any], secret: str
    ) -> None:
        victim = await self._victim(rig, kind, secret)
        where = await victim.call("where")
        attacker = await rig.run(_sources(), network=kind, limits=self.limits)
        parent = Path(f"/proc/{attacker.pid}/status").read_text()
        outcome = await _outcome(
            attacker,
            {
                **event,
                "attack": name,
                "worker_pid": int(parent.partition("PPid:")[2].split()[0]),
                "victim_pid": victim.pid,
                "victim_port": where["port"],
                "victim_addresses": where["addresses"],
                "memory_mb": self.limits.memory_mb,
                "max_processes": self.limits.max_processes,
                "scratch_mb": self.limits.scratch_mb,
                "tmp_mb": self.limits.tmp_mb,
            },
        )
        assert await victim.call("how are you") == "well"
        await attacker.sandbox.destroy()
        assert not is_running(attacker.pid)
        if outcome not in ALL[name].expected and name in self.exempt:
            pytest.xfail(self.exempt[name])
        assert outcome in ALL[name].expected


async def _outcome(attacker: Instance, event: dict[str, Any]) -> str:
    try:
        return str(await attacker.call(event))
    except HungUpError:
        death = await attacker.wait()
    if death.cause is DeathCause.SIGNALED and death.signal == "SIGSYS":
        return "EPERM"  # a filter may kill instead of answering
    return f"died: {death}"


def _hashes(*words: str) -> dict[str, Any]:
    return {"secret_hashes": [hashlib.sha256(word.encode()).hexdigest() for word in words]}


def _sources() -> dict[str, str]:
    folder = Path(attack_handlers.__file__).parent
    sources = {f"attack_handlers/{path.name}": path.read_text() for path in folder.glob("*.py")}
    return {"lambda_func.py": _ATTACKER, **sources}


def _own_addresses() -> list[str]:
    """Every address that reaches this host from itself, as the kernel's table of local routes says."""
    lines = Path("/proc/net/fib_trie").read_text().splitlines()
    addresses = {line.split()[-1] for line, below in pairwise(lines) if "/32 host LOCAL" in below}
    return sorted(address for address in addresses if not address.startswith("127."))
