"""What sandboxes with the network ``nat`` may send where, as nftables rules in a table of our own.

The table drops, and only drops: in nftables an accept ends one chain, and every other chain at the same hook still has
its say. So our drops hold whatever else is configured, and a chain of somebody else's that drops what is forwarded (Docker
sets such a policy) has to be told. Docker has the chain DOCKER-USER for that; without it, ``why_blocked`` names the chain.

Everything is checked as it comes in, at the raw priority, before any address translation of others: a packet for a
port that Docker publishes on the host is for the host, though Docker would send it on.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ol_sandbox_sock import nft

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SET = "connections"
"""The set in which each instance's connections are counted."""
_MOST_CONNECTIONS = 4096
_SHARE = 16
_TABLE_SIZE = Path("/proc/sys/net/netfilter/nf_conntrack_max")
LINK_LOCAL = IPv4Network("169.254.0.0/16")
"""Where clouds keep the metadata service, which hands out the machine's credentials."""
_TCP, _UDP, _DNS = 6, 17, 53
_RAW, _FILTER, _SRCNAT = -300, 0, 100  # linux/netfilter_ipv4.h
_INET, _IPV4 = 1, 2  # NFPROTO_*
_DOCKER_BRIDGES = ("docker0", "br-*")
_FORWARD_HOOK, _DROP_POLICY = 2, 0
_LEGACY_TABLES = Path("/proc/thread-self/net/ip_tables_names")


@dataclass(frozen=True, slots=True)
class Chain:
    """One base chain."""

    name: str
    hook: str
    priority: int
    type: str = "filter"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: what it says, and the expressions that do it."""

    chain: str
    text: str
    expressions: nft.Expressions

    def describe(self) -> str:
        """Say it in words."""
        return f"{self.chain}: {self.text}"


CHAINS = (
    Chain("arriving", "prerouting", _RAW),
    Chain("local", "input", _FILTER),
    Chain("passing", "forward", _FILTER),
    Chain("leaving", "postrouting", _SRCNAT, "nat"),
)


def most_connections() -> int:
    """Say how many connections one instance may have: a small part of those that the kernel can remember."""
    try:
        return min(_MOST_CONNECTIONS, int(_TABLE_SIZE.read_text()) // _SHARE)
    except FileNotFoundError:  # nobody has loaded the module yet; its default is larger than that
        return _MOST_CONNECTIONS


def plan(
    ours: str,
    block: IPv4Network,
    pool: IPv4Network,
    nameservers: Sequence[str],
    connections: int = _MOST_CONNECTIONS,
) -> Sequence[Rule]:
    """List the rules.

    Args:
        ours: The names of this worker's interfaces, ``ol...*``.
        block: The addresses of this worker's instances.
        pool: The addresses of every worker's instances.
        nameservers: Addresses to which DNS is let through, whosever they are.
        connections: How many an instance may have at once.
    """
    came = nft.came_by(ours)
    arriving = [
        Rule("arriving", "not IPv4: drop", came + nft.is_ipv4(equal=False) + nft.drop()),
        Rule(
            "arriving",
            "a source that is not the interface's: drop",
            came + nft.is_spoofed() + nft.drop(),
        ),
    ]
    # The kernel's table of connections is the whole machine's; when it is full, new ones of everybody's are dropped.
    many = came + nft.begins() + nft.is_of_more_than(connections, SET) + nft.drop()
    text = f"more than {connections} connections of one instance: drop"
    local, passing = [Rule("local", text, many)], [Rule("passing", text, many)]
    for address in map(IPv4Address, nameservers):
        for protocol in (_UDP, _TCP):
            asks = came + nft.is_for_port(protocol, _DNS) + nft.is_to(address) + nft.accept()
            text = f"DNS to {address} by protocol {protocol}: accept"
            arriving.append(Rule("arriving", text, asks))
            local.append(Rule("local", text, asks))
            passing.append(Rule("passing", text, asks))
    arriving.append(
        Rule("arriving", "for this host: drop", came + nft.is_to_this_host() + nft.drop())
    )
    # Broadcast and multicast come here without being for an address of the host.
    local.append(Rule("local", "anything else: drop", came + nft.drop()))
    passing += [
        Rule(
            "passing",
            "link-local, metadata services: drop",
            came + nft.is_to(LINK_LOCAL) + nft.drop(),
        ),
        Rule("passing", "other instances: drop", came + nft.is_to(pool) + nft.drop()),
        Rule("passing", "answers: accept", nft.leaves_by(ours) + nft.is_an_answer() + nft.accept()),
        Rule("passing", "from outside to an instance: drop", nft.leaves_by(ours) + nft.drop()),
    ]
    leaving = Rule(
        "leaving",
        "to the outside: masquerade",
        nft.is_ipv4() + nft.is_from(block) + nft.leaves_by(ours, equal=False) + nft.masquerade(),
    )
    return (*arriving, *local, *passing, leaving)


def docker_plan(ours: str) -> Sequence[Rule]:
    """List the rules for DOCKER-USER, in order: past Docker's drop, but not into containers, where Docker decides.

    They use what the iptables program can read back; it refuses to touch a table with anything else in it.
    """
    into = [
        Rule(
            "DOCKER-USER",
            f"to {name}: Docker decides",
            nft.came_by(ours) + nft.leaves_by(name) + nft.leave(),
        )
        for name in _DOCKER_BRIDGES
    ]
    return (
        *into,
        Rule("DOCKER-USER", "from instances: accept", nft.came_by(ours) + nft.accept()),
        Rule("DOCKER-USER", "to instances: accept", nft.leaves_by(ours) + nft.accept()),
    )


@contextlib.contextmanager
def _tables(family: int) -> Iterator[Any]:
    # Late: only workers with the network nat pay for pyroute2.
    from pyroute2.nftables.main import NFTables  # type: ignore[import-untyped]

    client = NFTables(nfgen_family=family)
    try:
        yield client
    finally:
        client.close()


class _Counts:
    """The set of addresses with their connections, as the kernel wants it; pyroute2's own cannot be added to by a rule."""

    def __init__(self, table: str) -> None:
        self._table = table

    def as_netlink(self) -> dict[str, object]:
        return {
            "NFTA_SET_TABLE": self._table,
            "NFTA_SET_NAME": SET,
            "NFTA_SET_KEY_TYPE": 7,  # ipv4_addr of nftables' datatype.h; the kernel does not look
            "NFTA_SET_KEY_LEN": 4,
            "NFTA_SET_ID": 1,
            "NFTA_SET_FLAGS": {"NFT_SET_EVAL"},
        }


def install(table: str, rules: Sequence[Rule]) -> None:
    """Make our table; one of that name is replaced."""
    remove(table)
    with _tables(_INET) as client:
        client.table("add", name=table)
        # pyroute2 0.9 means to iterate over the answer, which is a list, once the kernel has made the set.
        with contextlib.suppress(TypeError):
            client.sets("add", set=_Counts(table))
        for chain in CHAINS:
            client.chain(
                "add",
                table=table,
                name=chain.name,
                hook=chain.hook,
                type=chain.type,
                priority=chain.priority,
            )
        for rule in rules:
            client.rule("add", table=table, chain=rule.chain, expressions=(rule.expressions,))


def remove(table: str) -> bool:
    """Remove our table, and say whether there was one."""
    with _tables(_INET) as client:
        if not any(_text(found, "NFTA_TABLE_NAME") == table for found in client.get_tables()):
            return False
        client.table("del", name=table)
        return True


def allow_beside_docker(ours: str) -> None:
    """Tell Docker's chain, if there is one, to let our packets pass."""
    disallow_beside_docker(ours)
    with _tables(_IPV4) as client:
        if _has_docker_chain(client):
            for rule in reversed(docker_plan(ours)):
                client.rule(
                    "insert", table="filter", chain=rule.chain, expressions=(rule.expressions,)
                )
    if _legacy("-S", "DOCKER-USER"):
        for arguments in _legacy_rules(ours):
            _legacy("-I", "DOCKER-USER", *arguments)


def disallow_beside_docker(ours: str) -> bool:
    """Take back what ``allow_beside_docker`` did, and say whether there was something."""
    found = False
    with _tables(_IPV4) as client:
        if _has_docker_chain(client):
            for rule in client.get_rules():
                if _text(rule, "NFTA_RULE_CHAIN") == "DOCKER-USER" and _names(rule, ours):
                    handle = rule.get_attr("NFTA_RULE_HANDLE")
                    client.rule("del", table="filter", chain="DOCKER-USER", handle=handle)
                    found = True
    if ours[:-1] + "+" in _legacy("-S", "DOCKER-USER"):
        for arguments in _legacy_rules(ours):
            _legacy("-D", "DOCKER-USER", *arguments)
        found = True
    return found


def has_docker() -> bool:
    """Whether Docker's chain is there, and so an engine that needs forwarding."""
    with _tables(_IPV4) as client:
        return _has_docker_chain(client) or bool(_legacy("-S", "DOCKER-USER"))


def why_blocked() -> str | None:
    """Name a chain of somebody else's that drops what is forwarded, where there is no DOCKER-USER to change its mind."""
    if has_docker():
        return None
    for family in (_INET, _IPV4):
        with _tables(family) as client:
            for chain in client.get_chains():
                hook = chain.get_attr("NFTA_CHAIN_HOOK")
                if (
                    hook is not None
                    and hook.get_attr("NFTA_HOOK_HOOKNUM") == _FORWARD_HOOK
                    and chain.get_attr("NFTA_CHAIN_POLICY") == _DROP_POLICY
                    and chain["nfgen_family"] == family
                ):
                    return f"{_text(chain, 'NFTA_CHAIN_TABLE')} {_text(chain, 'NFTA_CHAIN_NAME')}"
    if "-P FORWARD DROP" in _legacy("-S", "FORWARD"):
        return "filter FORWARD of iptables-legacy"
    return None


def _has_docker_chain(client: Any) -> bool:  # noqa: ANN401 -- pyroute2 has no types
    return any(
        _text(chain, "NFTA_CHAIN_TABLE") == "filter"
        and _text(chain, "NFTA_CHAIN_NAME") == "DOCKER-USER"
        for chain in client.get_chains()
    )


def _text(message: Any, attribute: str) -> str:  # noqa: ANN401 -- pyroute2 has no types
    return str(message.get_attr(attribute))


def _names(rule: Any, ours: str) -> bool:  # noqa: ANN401 -- pyroute2 has no types
    for expression in rule.get_attr("NFTA_RULE_EXPRESSIONS") or ():
        if expression.get_attr("NFTA_EXPR_NAME") == "cmp":
            data = expression.get_attr("NFTA_EXPR_DATA").get_attr("NFTA_CMP_DATA")
            if data.get_attr("NFTA_DATA_VALUE") == ours[:-1].encode():
                return True
    return False


def _legacy_rules(ours: str) -> Sequence[Sequence[str]]:
    """Say ``docker_plan`` as arguments of iptables, last first."""
    name = ours[:-1] + "+"
    bridges = [
        ["-i", name, "-o", bridge.replace("*", "+"), "-j", "RETURN"]
        for bridge in reversed(_DOCKER_BRIDGES)
    ]
    return (["-o", name, "-j", "ACCEPT"], ["-i", name, "-j", "ACCEPT"], *bridges)


def _legacy(*arguments: str) -> str:
    """Run iptables for the older tables, which netlink does not show; empty where they are not in use."""
    program = shutil.which("iptables-legacy")
    # Asking would load the kernel's module and make the tables; the file says whether somebody has.
    in_use = _LEGACY_TABLES.exists() and "filter" in _LEGACY_TABLES.read_text().split()
    if program is None or not in_use:
        return ""
    done = subprocess.run([program, "-w", *arguments], capture_output=True, text=True, check=False)
    return done.stdout
