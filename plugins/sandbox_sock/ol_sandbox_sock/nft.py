"""The nftables expressions that rules of ours are made of, as pyroute2 sends them.

pyroute2's own helpers cover four expressions, and its ``ipv4addr`` miscounts masks that end within a byte, so these are
built from the kernel's attributes (linux/netfilter/nf_tables.h). Each function returns the expressions of one condition
or verdict; a rule is their sum. The first register holds what is compared.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network
from typing import Any

Expressions = tuple[dict[str, Any], ...]

_REGISTER, _VERDICT_REGISTER = 1, 0
_EQUAL, _NOT_EQUAL = 0, 1
_META_IIFNAME, _META_OIFNAME, _META_NFPROTO, _META_L4PROTO = 6, 7, 15, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_CT_STATE, _CT_ESTABLISHED, _CT_RELATED, _CT_NEW = 0, 2, 4, 8
_ADD = 0
_FIB_SADDR, _FIB_DADDR, _FIB_IIF = 1, 2, 8
_RTN_LOCAL = 2
_NFPROTO_IPV4 = 2
_DROP, _ACCEPT, _RETURN = 0, 1, -5


def _expression(kind: str, **fields: object) -> dict[str, Any]:
    data = [(f"NFTA_{kind}_{name}".upper(), value) for name, value in fields.items()]
    return {"attrs": [("NFTA_EXPR_NAME", kind), ("NFTA_EXPR_DATA", {"attrs": data})]}


def _value(raw: bytes) -> dict[str, Any]:
    return {"attrs": [("NFTA_DATA_VALUE", raw)]}


def _compare(raw: bytes, *, equal: bool = True) -> dict[str, Any]:
    return _expression("cmp", sreg=_REGISTER, op=_EQUAL if equal else _NOT_EQUAL, data=_value(raw))


def _masked(mask: bytes) -> dict[str, Any]:
    nothing = _value(bytes(len(mask)))
    return _expression(
        "bitwise", sreg=_REGISTER, dreg=_REGISTER, len=len(mask), mask=_value(mask), xor=nothing
    )


def _meta(key: int) -> dict[str, Any]:
    return _expression("meta", dreg=_REGISTER, key=key)


def _interface(key: int, name: str, *, equal: bool) -> Expressions:
    # The kernel compares as many bytes as are given: without the final zero, every name that begins so.
    raw = name[:-1].encode() if name.endswith("*") else name.encode() + b"\0"
    return (_meta(key), _compare(raw, equal=equal))


def came_by(name: str) -> Expressions:
    """The packet came in by the interface; a final ``*`` stands for any ending."""
    return _interface(_META_IIFNAME, name, equal=True)


def leaves_by(name: str, *, equal: bool = True) -> Expressions:
    """The packet goes out by the interface, or by another one."""
    return _interface(_META_OIFNAME, name, equal=equal)


def is_ipv4(*, equal: bool = True) -> Expressions:
    """The packet is IPv4, or is not; to be asked before its addresses are."""
    return (_meta(_META_NFPROTO), _compare(bytes([_NFPROTO_IPV4]), equal=equal))


def is_for_port(protocol: int, port: int) -> Expressions:
    """The packet is of the protocol (6 TCP, 17 UDP) and for the port."""
    return (
        _meta(_META_L4PROTO),
        _compare(bytes([protocol])),
        _expression("payload", dreg=_REGISTER, base=_TRANSPORT_HEADER, offset=2, len=2),
        _compare(struct.pack("!H", port)),
    )


def is_from(network: IPv4Network | IPv4Address) -> Expressions:
    """The IPv4 source is in the network."""
    return _address(12, IPv4Network(network))


def is_to(network: IPv4Network | IPv4Address) -> Expressions:
    """The IPv4 destination is in the network."""
    return _address(16, IPv4Network(network))


def _address(offset: int, network: IPv4Network) -> Expressions:
    return (
        _expression("payload", dreg=_REGISTER, base=_NETWORK_HEADER, offset=offset, len=4),
        _masked(network.netmask.packed),
        _compare(network.network_address.packed),
    )


def is_an_answer() -> Expressions:
    """The packet belongs to a connection that the other side began."""
    return _state(_CT_ESTABLISHED | _CT_RELATED)


def begins() -> Expressions:
    """The packet begins a connection, or what the kernel takes for one."""
    return _state(_CT_NEW)


def is_of_more_than(count: int, addresses: str) -> Expressions:
    """The packet's source has more connections than that; the set *addresses* of the table remembers each source's."""
    over = _expression("connlimit", count=count, flags={"NFT_LIMIT_F_INV"})
    return (
        _expression("payload", dreg=_REGISTER, base=_NETWORK_HEADER, offset=12, len=4),
        _expression("dynset", set_name=addresses, op=_ADD, sreg_key=_REGISTER, expr=over),
    )


def _state(bits: int) -> Expressions:
    state = struct.pack("=I", bits)  # registers are in the machine's own byte order
    return (
        _expression("ct", dreg=_REGISTER, key=_CT_STATE),
        _masked(state),
        _compare(bytes(4), equal=False),
    )


# pyroute2 takes the two numbers of the fib expression for each other's type: the result for a set of flags, the flags for
# a number. A set of the names at bit 0 and bit 1 is sent as the number 1 or 3.
_FIB_OIF = {"NFT_FIB_RESULT_UNSPEC"}
_FIB_ADDRTYPE = {"NFT_FIB_RESULT_UNSPEC", "NFT_FIB_RESULT_OIF"}


def is_spoofed() -> Expressions:
    """An answer to the packet's source would not go out by the interface that the packet came by."""
    return (
        _expression("fib", dreg=_REGISTER, result=_FIB_OIF, flags=_FIB_SADDR | _FIB_IIF),
        _compare(struct.pack("=I", 0)),
    )


def is_to_this_host() -> Expressions:
    """The packet's destination, as it came in, is an address of this machine."""
    return (
        _expression("fib", dreg=_REGISTER, result=_FIB_ADDRTYPE, flags=_FIB_DADDR),
        _compare(struct.pack("=I", _RTN_LOCAL)),
    )


def _verdict(code: int) -> Expressions:
    verdict = {"attrs": [("NFTA_VERDICT_CODE", code)]}
    data = {"attrs": [("NFTA_DATA_VERDICT", verdict)]}
    return (_expression("immediate", dreg=_VERDICT_REGISTER, data=data),)


def drop() -> Expressions:
    """Drop the packet; no other chain can overrule it."""
    return _verdict(_DROP)


def accept() -> Expressions:
    """Let the packet pass this chain; others at the same hook still decide."""
    return _verdict(_ACCEPT)


def leave() -> Expressions:
    """Go on with the chain that called this one."""
    return _verdict(_RETURN)


def masquerade() -> Expressions:
    """Give the packet the address of the interface that it leaves by."""
    return (_expression("masq"),)
