"""Tests of the network nat, between network namespaces of the tests' own; nothing of the machine's is touched."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import TypeVar

import pytest

from ol_sandbox_sock import firewall, linux
from ol_sandbox_sock.network import Address, Nat
from olcore.errors import BackendUnusableError

Result = TypeVar("Result")

HOST, OUTSIDE, METADATA = "198.51.100.1", "198.51.100.2", "169.254.169.254"
REACH_S = 30.0
"""How long to wait for what must come."""
DROP_S = 0.3
"""How long to wait for what must not come: a dropped packet is only seen by its absence."""


def test_the_plan_lets_nothing_to_the_host_but_dns() -> None:
    rules = firewall.plan(
        "olx*", IPv4Network("100.87.0.0/20"), IPv4Network("100.87.0.0/16"), ["192.0.2.53"]
    )
    assert [rule.describe() for rule in rules] == [
        "arriving: not IPv4: drop",
        "arriving: a source that is not the interface's: drop",
        "arriving: DNS to 192.0.2.53 by protocol 17: accept",
        "arriving: DNS to 192.0.2.53 by protocol 6: accept",
        "arriving: for this host: drop",
        "local: DNS to 192.0.2.53 by protocol 17: accept",
        "local: DNS to 192.0.2.53 by protocol 6: accept",
        "local: anything else: drop",
        "passing: DNS to 192.0.2.53 by protocol 17: accept",
        "passing: DNS to 192.0.2.53 by protocol 6: accept",
        "passing: link-local, metadata services: drop",
        "passing: other instances: drop",
        "passing: answers: accept",
        "passing: from outside to an instance: drop",
        "leaving: to the outside: masquerade",
    ]


def test_docker_is_asked_to_decide_about_its_own_containers() -> None:
    assert [rule.describe() for rule in firewall.docker_plan("olx*")] == [
        "DOCKER-USER: to docker0: Docker decides",
        "DOCKER-USER: to br-*: Docker decides",
        "DOCKER-USER: from instances: accept",
        "DOCKER-USER: to instances: accept",
    ]


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


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
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
        made = World(host, outside, tmp_path / "olcore")
        undo.push(made.undo)
        yield made
        made.undo.close()
        left = host.sh("ip -o link")
        assert "ol" not in [line.split(": ")[1][:2] for line in left.splitlines()]
        assert not (tmp_path / "olcore").exists()


pytestmark = pytest.mark.kernel


def test_an_instance_reaches_the_outside_under_the_hosts_address(world: World) -> None:
    instance, _ = world.instance(world.nat(), 1)
    assert instance.reaches(OUTSIDE, 7000) == HOST


def test_an_instance_reaches_dns_on_the_host_and_nothing_else_there(world: World) -> None:
    instance, address = world.instance(world.nat(), 1)
    assert instance.reaches(HOST, 53) == address.address
    assert instance.reaches(HOST, 8080) == ""
    assert instance.reaches(address.gateway, 8080) == ""
    assert instance.reaches("127.0.0.1", 8081) == ""
    with world.host.datagrams(HOST, 53) as resolver:
        instance.send("", HOST, 53, b"question")
        question, asker = resolver.recvfrom(100)
        assert question == b"question"
        assert asker[0] == address.address


def test_an_instance_does_not_reach_a_port_that_the_host_sends_on(world: World) -> None:
    # As Docker does for a published port: the packet is for the host, and forwarded before the host looks at it.
    world.host.sh(
        f"iptables -t nat -A PREROUTING -p tcp -d {HOST} --dport 9000 -j DNAT --to {OUTSIDE}:7000"
    )
    instance, _ = world.instance(world.nat(), 1)
    assert instance.reaches(HOST, 9000) == ""


def test_an_instance_does_not_reach_another(world: World) -> None:
    nat = world.nat()
    (one, _), (two, address) = world.instance(nat, 1), world.instance(nat, 2)
    with two.listen(address.address, 7000):
        assert two.reaches(address.address, 7000) != ""
        assert one.reaches(address.address, 7000) == ""
        assert world.outside.reaches(address.address, 7000) == ""


def test_an_instance_does_not_reach_another_workers(world: World) -> None:
    one, _ = world.instance(world.nat(), 1)
    two, address = world.instance(world.nat(label="ol-test-other"), 1)
    with two.listen(address.address, 7000):
        assert one.reaches(address.address, 7000) == ""
        assert one.reaches(OUTSIDE, 7000) == two.reaches(OUTSIDE, 7000) == HOST


def test_an_instance_does_not_reach_the_metadata_service(world: World) -> None:
    assert world.host.reaches(METADATA, 80) == HOST
    instance, _ = world.instance(world.nat(), 1)
    assert instance.reaches(METADATA, 80) == ""


def test_a_spoofed_source_goes_nowhere(world: World) -> None:
    nat = world.nat()
    (one, address), (_, other) = world.instance(nat, 1), world.instance(nat, 2)
    stranger = "203.0.113.9"
    # The kernel's own check would do; what the firewall's does is seen without it.
    world.host.sh("for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $file; done")
    one.sh(f"ip address add {stranger}/32 dev eth0; ip address add {other.address}/32 dev eth0")
    with (
        world.outside.datagrams(OUTSIDE, 7001) as outside,
        world.host.datagrams(HOST, 53) as resolver,
    ):
        for target, port in ((OUTSIDE, 7001), (HOST, 53)):
            one.send(stranger, target, port, b"spoofed")
            one.send(other.address, target, port, b"spoofed")
            one.send(address.address, target, port, b"true")
        assert outside.recv(100) == b"true"
        assert resolver.recv(100) == b"true"


def test_ipv6_goes_nowhere(world: World) -> None:
    world.host.sh(
        "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad"
    )  # addresses are good at once
    nat = world.nat()
    instance, _ = world.instance(nat, 1)
    instance.sh("ip address add fe80::99/64 dev eth0 nodad")
    host_end = nat._name(nat._live[1])
    local = (
        world.host.sh(f"ip -6 -o address show dev {host_end} scope link").split()[3].split("/")[0]
    )

    def serve() -> socket.socket:
        return socket.create_server(("::", 7002), family=socket.AF_INET6)

    def connect() -> bool:
        with socket.socket(socket.AF_INET6) as client:
            client.settimeout(DROP_S)
            client.bind(("fe80::99", 0, 0, socket.if_nametoindex("eth0")))
            return client.connect_ex((local, 7002, 0, socket.if_nametoindex("eth0"))) == 0

    with world.host.run(serve):
        assert not instance.run(connect)


def test_it_works_beside_docker_and_leaves_its_rules_as_they_were(world: World) -> None:
    world.host.sh(
        "iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -I FORWARD -j DOCKER-USER"
    )
    before = world.host.sh("iptables -S")
    nat = world.nat()
    instance, _ = world.instance(nat, 1)
    assert instance.reaches(OUTSIDE, 7000) == HOST
    # The iptables program can still read and change the table, or Docker would fail.
    assert f"-A DOCKER-USER -i {nat._ours[:-1]}+ -j ACCEPT" in world.host.sh("iptables -S")
    world.host.run(nat.close)
    assert world.host.sh("iptables -S") == before
    # Docker came to need it, whoever turned it on.
    assert world.host.sh("cat /proc/sys/net/ipv4/ip_forward") == "1\n"


def test_into_a_container_docker_decides(world: World) -> None:
    world.host.sh(
        "iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -I FORWARD -j DOCKER-USER\n"
        "ip link add docker0 type bridge; ip address add 172.17.0.1/16 dev docker0; ip link set docker0 up"
    )
    container = Place()
    world.undo.callback(container.close)
    world.host.sh(
        f"ip link add c0 master docker0 type veth peer name eth0 netns /proc/{os.getpid()}/fd/{container.fd}\n"
        "ip link set c0 up"
    )
    container.sh(
        "ip address add 172.17.0.2/16 dev eth0; ip link set eth0 up; ip route add default via 172.17.0.1"
    )
    instance, _ = world.instance(world.nat(), 1)
    with container.listen("172.17.0.2", 80):
        assert world.host.reaches("172.17.0.2", 80) == "172.17.0.1"
        assert instance.reaches("172.17.0.2", 80) == ""


LEGACY = """
import subprocess, sys
from ol_sandbox_sock import firewall
def iptables(*words):
    return subprocess.run(["iptables-legacy", *words], check=True, capture_output=True, text=True).stdout
iptables("-P", "FORWARD", "DROP")
assert firewall.why_blocked() == "filter FORWARD of iptables-legacy"
iptables("-N", "DOCKER-USER")
before = iptables("-S")
assert firewall.why_blocked() is None
firewall.allow_beside_docker("olx*")
firewall.allow_beside_docker("olx*")
print(iptables("-S", "DOCKER-USER"), end="")
assert firewall.disallow_beside_docker("olx*")
assert not firewall.disallow_beside_docker("olx*")
assert iptables("-S") == before
"""


def test_it_works_beside_a_docker_with_the_older_tables(world: World) -> None:
    done = world.host.run(
        lambda: subprocess.run(
            [sys.executable, "-c", LEGACY], capture_output=True, text=True, check=False
        )
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "-N DOCKER-USER",
        "-A DOCKER-USER -i olx+ -o docker0 -j RETURN",
        "-A DOCKER-USER -i olx+ -o br-+ -j RETURN",
        "-A DOCKER-USER -i olx+ -j ACCEPT",
        "-A DOCKER-USER -o olx+ -j ACCEPT",
    ]


def test_a_chain_that_drops_what_is_forwarded_is_named(world: World) -> None:
    assert world.host.run(Nat.why_unusable) is None
    world.host.sh("iptables -P FORWARD DROP")
    reason = world.host.run(Nat.why_unusable)
    assert reason
    assert "filter FORWARD" in reason


def test_an_interface_goes_when_it_is_detached_or_its_namespace_ends(world: World) -> None:
    nat = world.nat()
    _, first = world.instance(nat, 1)
    world.host.run(nat.detach, 1)
    world.host.run(nat.detach, 1)
    assert nat._ours[:-1] not in world.host.sh("ip -o link")
    _, second = world.instance(nat, 2)
    assert second.address != first.address  # the one that was free for longest is next
    place = Place()
    world.host.run(nat.attach, 3, place.fd)
    place.close()
    while nat._name(3) in world.host.sh("ip -o link"):
        pass
    world.host.run(nat.detach, 3)


def test_a_failed_attach_leaves_nothing(world: World) -> None:
    nat = world.nat()
    with Path("/dev/null").open() as wrong, pytest.raises(OSError, match="veth for"):
        world.host.run(nat.attach, 1, wrong.fileno())
    assert nat._ours[:-1] not in world.host.sh("ip -o link")
    assert nat._live == {}


def test_when_all_addresses_are_taken_it_says_so(world: World) -> None:
    nat = world.nat("100.87.0.0/30")
    world.instance(nat, 1)
    world.instance(nat, 2)
    with pytest.raises(OSError, match="all 2 addresses are taken"):
        world.host.run(nat.attach, 3, world.outside.fd)
    with pytest.raises(BackendUnusableError, match="taken by another worker"):
        world.nat("100.87.0.0/30", "ol-test-other")


def test_a_pool_that_the_host_has_a_route_to_is_refused(world: World) -> None:
    with pytest.raises(BackendUnusableError, match=r"198\.51\.100\.0/24 through out0"):
        world.nat("198.51.0.0/16")
    assert not world.run.exists()


def test_closing_restores_what_was(world: World) -> None:
    forward = "cat /proc/sys/net/ipv4/ip_forward"
    assert world.host.sh(forward) == "0\n"
    first, second = world.nat(), world.nat(label="ol-test-other")
    assert world.host.sh(forward) == "1\n"
    world.host.run(first.close)
    world.host.run(first.close)
    assert world.host.sh(forward) == "1\n"
    assert not world.host.run(firewall.remove, f"olcore-{world.label}")
    world.host.run(second.close)
    assert world.host.sh(forward) == "0\n"


DIES = """
import os, sys
from pathlib import Path
from ol_sandbox_sock.network import Nat
nat = Nat(Path(sys.argv[1]))
nat.start(sys.argv[2])
nat.attach(1, int(sys.argv[3]))
print("up", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("docker", [False, True])
def test_clean_removes_what_a_killed_worker_left(world: World, docker: bool) -> None:
    place = Place()
    if docker:
        world.host.sh("iptables -N DOCKER-USER")

    def worker() -> int:
        words = [sys.executable, "-c", DIES, str(world.run), world.label, str(place.fd)]
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[place.fd]
        ) as process:
            assert process.stdout
            assert process.stdout.readline() == b"up\n"
            process.kill()
            return process.wait()

    assert world.host.run(worker) == -signal.SIGKILL
    removed = world.host.run(Nat.clean, world.label, world.run)
    place.close()
    assert removed[0].startswith("interface ol")
    assert removed[1:] == [
        f"nftables table olcore-{world.label}",
        *(["rules in DOCKER-USER"] if docker else []),
        "address block 100.87.0.0-20",
        *([] if docker else ["ip_forward"]),  # Docker needs it
    ]
    assert world.host.run(Nat.clean, world.label, world.run) == []
    assert world.host.sh("cat /proc/sys/net/ipv4/ip_forward") == f"{int(docker)}\n"
