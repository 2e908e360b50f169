"""The network nat from start to close: interfaces, addresses, and what a killed worker leaves."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ol_sandbox_sock import firewall
from ol_sandbox_sock.network import Nat
from olcore.errors import BackendUnusableError
from plugins.sandbox_sock.tests.worlds import Place, World, made


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with made(tmp_path) as world:
        yield world


pytestmark = pytest.mark.kernel


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
