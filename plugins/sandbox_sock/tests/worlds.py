"""Hosts with an outside, made of network namespaces: where tests of the network nat happen."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ol_sandbox_sock import linux
from ol_sandbox_sock.network import Address, Nat

Result = TypeVar("Result")

HOST, OUTSIDE, METADATA = "198.51.100.1", "198.51.100.2", "169.254.169.254"
REACH_S = 30.0
"""How long to wait for what must come."""
DROP_S = 0.3
"""How long to wait for what must not come: a dropped packet is only seen by its absence."""


class Place:
    """A network namespace, and a thread in it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self.fd = self.run(self._enter)

    @staticmethod
    def _enter() -> int:
        linux.unshare(linux.CLONE_NEWNET)
        linux.interface_up("lo")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def run(self, function: Callable[..., Result], *arguments: object) -> Result:
        return self._thread.submit(function, *arguments).result()

    def sh(self, command: str) -> str:
        done = self.run(
            lambda: subprocess.run(
                ["sh", "-ec", command], capture_output=True, text=True, check=False
            )
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def close(self) -> None:
        self._thread.shutdown()
        os.close(self.fd)

    def listen(self, address: str, port: int) -> socket.socket:
        """Serve connections there; each is told the address that it seems to come from."""

        def make() -> socket.socket:
            server = socket.create_server((address, port))
            server.settimeout(REACH_S)
            return server

        server = self.run(make)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, (peer, _) = server.accept()
                    with connection:
                        connection.sendall(peer.encode())

        threading.Thread(target=serve, daemon=True).start()
        return server

    def datagrams(self, address: str, port: int) -> socket.socket:
        """Receive datagrams there."""

        def make() -> socket.socket:
            receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            receiver.bind((address, port))
            receiver.settimeout(REACH_S)
            return receiver

        return self.run(make)

    def reaches(self, address: str, port: int) -> str:
        """Connect, and return the address seen there; empty when nothing answers."""

        def connect() -> str:
            timeout = REACH_S if expected else DROP_S
            try:
                with socket.create_connection((address, port), timeout) as connection:
                    return connection.recv(100).decode()
            except OSError:
                return ""

        expected = (address, port) in self.expects
        return self.run(connect)

    expects: frozenset[tuple[str, int]] = frozenset({(OUTSIDE, 7000), (HOST, 53)})

    def send(self, source: str, address: str, port: int, text: bytes) -> None:
        def transmit() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                if source:
                    sender.bind((source, 0))
                sender.sendto(text, (address, port))

        self.run(transmit)


@dataclass
class World:
    """A host with an outside, and what the test makes in it."""

    host: Place
    outside: Place
    run: Path
    label: str = field(default_factory=lambda: f"ol-test-{uuid.uuid4().hex[:8]}")
    undo: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def nat(self, pool: str = "100.87.0.0/16", label: str = "") -> Nat:
        nat = Nat(self.run)
        self.host.run(nat.start, label or self.label, pool, (HOST, "fd00::53"))
        self.undo.callback(self.host.run, nat.close)
        return nat

    def instance(self, nat: Nat, number: int) -> tuple[Place, Address]:
        place = Place()
        self.undo.callback(place.close)
        address = self.host.run(nat.attach, number, place.fd)
        place.run(_set_up, address)
        return place, address


def _set_up(way: Address) -> None:
    """What the guest does."""
    linux.set_address(way.device, way.address, 32)
    linux.interface_up(way.device)
    linux.add_neighbour(way.gateway, way.gateway_hardware, way.device)
    linux.add_default_route(way.gateway, way.device)


@contextlib.contextmanager
def made(folder: Path) -> Iterator[World]:
    """Make a world, and look that nothing of a test's is left in it."""
    with contextlib.ExitStack() as undo:
        host, outside = Place(), Place()
        undo.callback(outside.close)
        undo.callback(host.close)
        host.sh(
            f"ip link add out0 type veth peer name eth0 netns /proc/{os.getpid()}/fd/{outside.fd}\n"
            f"ip address add {HOST}/24 dev out0; ip link set out0 up\n"
            f"ip route add default via {OUTSIDE}\n"
            "echo 0 > /proc/sys/net/ipv4/ip_forward"  # a new namespace takes the machine's own value
        )
        outside.sh(
            f"ip address add {OUTSIDE}/24 dev eth0; ip link set eth0 up\n"
            f"ip address add {METADATA}/32 dev lo\n"
            f"ip route add 100.87.0.0/16 via {HOST}"
        )
        for place, address, port in (
            (outside, OUTSIDE, 7000),
            (outside, METADATA, 80),
            (host, HOST, 8080),
            (host, "127.0.0.1", 8081),
            (host, HOST, 53),
        ):
            undo.callback(place.listen(address, port).close)
        world = World(host, outside, folder / "olcore")
        undo.push(world.undo)
        yield world
        world.undo.close()
        left = host.sh("ip -o link")
        assert "ol" not in [line.split(": ")[1][:2] for line in left.splitlines()]
        assert not (folder / "olcore").exists()
