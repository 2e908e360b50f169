"""Attempts over the network; the suite makes each of them with every kind of network that promises to stop it."""

from __future__ import annotations

import socket

from . import Event, attack

CLOSED = (
    "ECONNREFUSED",
    "ENETUNREACH",
    "EHOSTUNREACH",
    "EPERM",
    "EACCES",
    "EADDRNOTAVAIL",
    "ETIMEDOUT",
    "timed out",
)
WAIT_S = 1.0


def _try(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(WAIT_S)
        client.connect((address, port))


@attack(*CLOSED)
def reach_the_worker_over_loopback(event: Event) -> None:
    """127.0.0.1 is the sandbox's own."""
    _try("127.0.0.1", event["worker_port"])


@attack("all closed")
def reach_the_worker_over_every_address(event: Event) -> str:
    """The host's own addresses, and each gateway that this side knows."""
    gateways = []
    with open("/proc/net/route") as file:
        for line in file.readlines()[1:]:
            number = int(line.split()[2], 16)
            gateways.append(socket.inet_ntoa(number.to_bytes(4, "little")))
    for address in {*event["host_addresses"], *gateways, "169.254.1.1", "0.0.0.0"}:
        try:
            _try(address, event["worker_port"])
        except OSError:
            continue
        return f"reached {address}"
    return "all closed"


@attack("all closed")
def reach_another_instance(event: Event) -> str:
    """Its neighbour listens on a port."""
    for address in event["victim_addresses"]:
        try:
            _try(address, event["victim_port"])
        except OSError:
            continue
        return f"reached {address}"
    return "all closed"


@attack("ECONNREFUSED", "EPERM", "ENOENT")
def reach_an_abstract_socket_of_the_host(event: Event) -> None:
    """Abstract Unix sockets have no path, so only the network namespace keeps them apart."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect("\0" + event["abstract_name"])


@attack("none in sight")
def see_sockets_of_the_host(event: Event) -> str:
    """/proc/net lists what listens in the network namespace."""
    port = f":{event['worker_port']:04X} "
    with open("/proc/net/tcp") as file:
        return "in sight" if port in file.read() else "none in sight"


@attack("its own only")
def see_interfaces_of_the_host(event: Event) -> str:
    names = {name for _, name in socket.if_nameindex()}
    # Tunnels are made by the kernel in every namespace, where their modules are loaded.
    kernels = {"lo", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0",
               "ip6tnl0", "ip6gre0"}  # fmt: skip
    others = names - kernels
    return f"saw {sorted(names)}" if len(others) > 1 else "its own only"
