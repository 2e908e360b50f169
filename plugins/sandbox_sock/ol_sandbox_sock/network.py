"""The network ``nat``: each instance on a veth of its own, routed, with the outside behind address translation.

No bridge: a bridge takes 1,023 ports and lets its members see each other. Instead each instance has one address, a /32, and
the host has a route to it by the instance's own interface; inside, everything goes to the gateway 169.254.1.1, an address
that no interface has. Permanent neighbour entries at both ends say which hardware address is meant, so that nobody asks.

What may pass is in firewall.py. Everything here blocks, for about two milliseconds under one kernel lock for ``attach``, and
pyroute2 refuses to work where an event loop runs: use one thread for all of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import socket
import threading
from collections import deque
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ol_sandbox_sock import claims, firewall
from olcore.errors import BackendUnusableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Result = TypeVar("Result")

GATEWAY = "169.254.1.1"
GATEWAY_HARDWARE = "02:6f:6c:00:00:01"
"""Of every host end; each is alone with its peer, so they may be the same."""
DEVICE = "eth0"
POOL = "100.87.0.0/16"
"""Within the shared address space of RFC 6598, which LANs, Docker and clouds' networks do not use."""
RUN = Path("/run/olcore")
_IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_CONF = Path("/proc/sys/net/ipv4/conf")
_LARGEST_BLOCK, _SMALLEST_BLOCK = 20, 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """What the instance's end needs to be told."""

    address: str
    gateway: str = GATEWAY
    gateway_hardware: str = GATEWAY_HARDWARE
    device: str = DEVICE


class Nat:
    """The network of one worker.

    Args:
        run: The folder for what the workers of the machine share.
    """

    def __init__(self, run: Path = RUN) -> None:
        self._run = run
        self._undo = contextlib.ExitStack()
        self._ip: Any = None
        self._ours = ""
        self._free: deque[int] = deque()
        self._block = IPv4Network(POOL)
        self._live: dict[int, int] = {}

    @staticmethod
    def why_unusable() -> str | None:
        """Say why this network cannot be had here; changes nothing, may be called anywhere."""
        if os.geteuid() != 0:
            return "the network nat needs root"
        try:
            blocked = _in_thread(firewall.why_blocked)
        except ImportError as error:
            return f"{error}; pip install pyroute2"
        except Exception as error:  # noqa: BLE001 -- whatever it is, nftables cannot be used, and this says why
            return f"nftables cannot be used: {error}; the kernel needs nf_tables"
        if blocked:
            return (
                f"the chain {blocked} drops what is forwarded; let it accept interfaces named ol*"
            )
        return None

    def start(self, label: str, pool_cidr: str = POOL, nameservers: Sequence[str] = ()) -> None:
        """Set up the host's side.

        Args:
            label: Unique for the worker on this machine.
            pool_cidr: Where addresses come from; each worker takes a block of it, by a lock file.
            nameservers: Resolvers to let DNS through to; those that are not IPv4 are left out.

        Raises:
            BackendUnusableError: Something is missing; nothing is left half-made.
        """
        pool = IPv4Network(pool_cidr)
        if taken := _route_into(pool):
            raise BackendUnusableError(
                f"the host already has a route to {taken}, within {pool}",
                hint="set sock.nat_pool to a network that is not in use",
            )
        self._ours = f"{_prefix(label)}*"
        try:
            with contextlib.ExitStack() as undo:
                undo.callback(
                    _restore_forwarding, self._run
                )  # after the claim is given back, which may be the last
                self._block = self._claim_block(pool, undo)
                _turn_forwarding_on(self._run)
                undo.callback(firewall.remove, _table(label))
                resolvers = [address for address in nameservers if ":" not in address]
                most = firewall.most_connections()
                rules = firewall.plan(self._ours, self._block, pool, resolvers, most)
                firewall.install(_table(label), rules)
                undo.callback(firewall.disallow_beside_docker, self._ours)
                firewall.allow_beside_docker(self._ours)
                self._ip = _client()
                undo.callback(self._ip.close)
                undo.callback(_remove_links, label)
                self._undo = undo.pop_all()
        except Exception as error:
            if isinstance(error, BackendUnusableError):
                raise
            raise BackendUnusableError(
                f"the network nat cannot be set up: {error}",
                hint="the kernel needs nf_tables with nft_fib, nft_masq, nft_ct and nft_connlimit",
            ) from error
        self._free = deque(range(1, self._block.num_addresses - 1))

    def _claim_block(self, pool: IPv4Network, undo: contextlib.ExitStack) -> IPv4Network:
        prefix = max(_LARGEST_BLOCK, pool.prefixlen, min(pool.prefixlen + 4, _SMALLEST_BLOCK))
        names = (str(block).replace("/", "-") for block in pool.subnets(new_prefix=prefix))
        claim = claims.claim(self._run / "addresses", names)
        if claim is None:
            raise BackendUnusableError(
                f"every block of {pool} is taken by another worker",
                hint="set sock.nat_pool to a larger network",
            )
        undo.callback(claim.close)
        return IPv4Network(claim.name.replace("-", "/"))

    def attach(self, instance_number: int, netns_fd: int) -> Address:
        """Give the network namespace an interface, down and without an address; its owner does the rest.

        Raises:
            OSError: It cannot be made; nothing of it is left.
        """
        if not self._free:
            raise OSError(
                errno.EADDRNOTAVAIL,
                f"all {self._block.num_addresses - 2} addresses are taken",
                str(self._block),
            )
        # The address that has been free for longest: answers to a dead instance may still be on their way.
        place = self._free.popleft()
        address = str(self._block[place])
        self._live[instance_number] = place
        try:
            with _translated(f"veth for {address}"):
                self._connect(self._name(place), address, netns_fd)
        except BaseException:
            self.detach(instance_number)
            raise
        return Address(address=address)

    def _connect(self, name: str, address: str, netns_fd: int) -> None:
        hardware = "02:6f:" + ":".join(f"{byte:02x}" for byte in socket.inet_aton(address))
        # The peer is made where it belongs: moving it there later waits for a grace period of the kernel's, 33 ms.
        peer = {"ifname": DEVICE, "address": hardware, "net_ns_fd": netns_fd}
        self._ip.link("add", ifname=name, kind="veth", address=GATEWAY_HARDWARE, peer=peer)
        index = socket.if_nametoindex(name)
        conf = _CONF / name
        (conf / "rp_filter").write_text(
            "1"
        )  # the firewall's check does not depend on it; the log then says "martian"
        (conf / "arp_ignore").write_text("8")  # or the host tells which addresses it has
        self._ip.link("set", index=index, state="up")
        self._ip.route("add", dst=f"{address}/32", oif=index, scope="link")
        self._ip.neigh("add", dst=address, lladdr=hardware, ifindex=index, state="permanent")

    def detach(self, instance_number: int) -> None:
        """Remove the interface if it is still there (it goes with its namespace), and free the address; idempotent."""
        place = self._live.pop(instance_number, None)
        if place is not None:
            with contextlib.suppress(OSError), _translated("veth"):
                self._ip.link("del", index=socket.if_nametoindex(self._name(place)))
            self._free.append(place)

    def _name(self, place: int) -> str:
        return f"{self._ours[:-1]}{place:x}"

    def close(self) -> None:
        """Undo everything; idempotent."""
        self._live.clear()
        self._undo.close()

    @staticmethod
    def clean(label: str, run: Path = RUN) -> list[str]:
        """Remove what a dead worker left; one line for each thing. May be called anywhere."""
        return _in_thread(lambda: _clean(label, run))


def _clean(label: str, run: Path) -> list[str]:
    removed = [f"interface {name}" for name in _remove_links(label)]
    # Without nf_tables in the kernel there is nothing to remove.
    with contextlib.suppress(Exception):
        if firewall.remove(_table(label)):
            removed.append(f"nftables table {_table(label)}")
        if firewall.disallow_beside_docker(f"{_prefix(label)}*"):
            removed.append("rules in DOCKER-USER")
    removed += [f"address block {name}" for name in claims.clean(run / "addresses")]
    if _restore_forwarding(run):
        removed.append("ip_forward")
    return removed


def _prefix(label: str) -> str:
    """The start of this worker's interface names, which have 15 characters: ours end in up to 4 more."""
    return "ol" + hashlib.sha256(label.encode()).hexdigest()[:8]


def _table(label: str) -> str:
    return f"olcore-{label}"


def _route_into(pool: IPv4Network) -> str | None:
    """Name a route of somebody else's to addresses of the pool; those of other workers are to single addresses of ours."""
    for line in Path("/proc/thread-self/net/route").read_text().splitlines()[1:]:
        device, destination, _, _, _, _, _, mask, *_ = line.split()
        address, netmask = (int(word, 16).to_bytes(4, "little") for word in (destination, mask))
        network = IPv4Network((address, socket.inet_ntoa(netmask)))
        if network.prefixlen and network.overlaps(pool) and not device.startswith("ol"):
            return f"{network} through {device}"
    return None


def _client() -> Any:  # noqa: ANN401 -- pyroute2 has no types
    # Late: only workers with the network nat pay for pyroute2.
    from pyroute2 import IPRoute  # type: ignore[import-untyped]

    return IPRoute()


def _remove_links(label: str) -> list[str]:
    names = [name for _, name in socket.if_nameindex() if name.startswith(_prefix(label))]
    if names:
        client = _client()
        try:
            for name in names:
                # It may go by itself at this moment, when the last process of its namespace ends.
                with contextlib.suppress(OSError), _translated(name):
                    client.link("del", index=socket.if_nametoindex(name))
        finally:
            client.close()
    return names


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn pyroute2's errors into OSError."""
    from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

    try:
        yield
    except NetlinkError as error:
        raise OSError(error.code, f"{what}: {os.strerror(error.code)}") from error


# ip_forward is one switch for the whole machine, and turned off it stays as it was found. A file says that we turned it
# on; the last worker turns it off again, unless Docker came meanwhile, which needs it and does not look again.


def _turn_forwarding_on(run: Path) -> None:
    if _IP_FORWARD.read_text().strip() == "0":
        with _locked(run / "ip_forward"):
            _IP_FORWARD.write_text("1")


def _restore_forwarding(run: Path) -> bool:
    marker = run / "ip_forward"
    if not marker.exists() or claims.is_any_held(run / "addresses"):
        return False
    with _locked(marker):
        off = not firewall.has_docker()
        if off:
            _IP_FORWARD.write_text("0")
        marker.unlink()
    claims.remove_empty(run / "addresses")
    with contextlib.suppress(OSError):
        run.rmdir()
    return off


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _in_thread(function: Callable[[], Result]) -> Result:
    """Call it where no event loop runs."""
    outcome: list[Result] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:  # noqa: BLE001 -- raised again below
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
