"""What an instance reaches through the network nat, between network namespaces of the tests' own; nothing of the machine's is touched."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from ol_sandbox_sock import firewall
from ol_sandbox_sock.network import Nat
from plugins.sandbox_sock.tests.worlds import (
    DROP_S,
    HOST,
    METADATA,
    OUTSIDE,
    REACH_S,
    Place,
    World,
    made,
)


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
        "local: more than 4096 connections of one instance: drop",
        "local: DNS to 192.0.2.53 by protocol 17: accept",
        "local: DNS to 192.0.2.53 by protocol 6: accept",
        "local: anything else: drop",
        "passing: more than 4096 connections of one instance: drop",
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


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with made(tmp_path) as world:
        yield world


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


def test_an_instance_pings_the_outside_and_no_address_of_the_host(world: World) -> None:
    instance, address = world.instance(world.nat(), 1)

    def pings(target: str, within_s: float) -> bool:
        echo = struct.pack("!BBHHH", 8, 0, ~(0x0800 + 1) & 0xFFFF, 0, 1)  # type, code, checksum
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
            raw.settimeout(within_s)
            raw.sendto(echo, (target, 0))
            try:
                return raw.recv(100)[20] == 0  # an echo reply, behind its IPv4 header
            except TimeoutError:
                return False

    assert instance.run(pings, OUTSIDE, REACH_S)
    for local in (HOST, address.gateway, "198.51.100.255", "255.255.255.255"):
        with suppress(OSError):  # no leave to send to all
            assert not instance.run(pings, local, DROP_S)


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


def test_one_instance_does_not_fill_the_machines_table_of_connections(world: World) -> None:
    nat = world.nat()
    (one, _), (two, _) = world.instance(nat, 1), world.instance(nat, 2)

    def flood() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for port in range(10000, 16000):
                sender.sendto(b"x", (OUTSIDE, port))

    def remembered() -> int:
        return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())

    one.run(flood)
    most = firewall.most_connections()
    assert most / 2 < world.host.run(remembered) <= most + 10
    assert two.reaches(OUTSIDE, 7000) == HOST


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
