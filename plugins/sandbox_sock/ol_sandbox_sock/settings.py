"""The settings of SOCK, under ``sock`` in template.json."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

_NAT_POOL = "100.87.0.0/16"


class SockSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator may set."""

    stem_cells: Annotated[int, Meta(ge=0, le=64)] = 3
    """Blank, fully set-up forks that wait for a handler, for each zygote and kind of network; 0 makes each when it is needed."""
    seccomp: Literal["on", "off"] = "on"
    """Whether handlers' system calls are filtered; ``off`` is for research."""
    interpreter: str = ""
    """Python inside the base, an absolute path there; empty means the worker's own with base ``host``, else the base's python3."""
    nameservers: tuple[str, ...] = ()
    """DNS servers for handlers; empty means the host's own that are not on loopback."""
    zygote_memory_mb: Annotated[int, Meta(ge=16)] = 1024
    """Memory limit of a package zygote in MiB."""
    uid_base: Annotated[int, Meta(ge=0, le=0xFFFF0000)] = 0
    """First host uid for sandboxes; 0 picks a range above those of /etc/subuid."""
    nat_pool: str = _NAT_POOL
    """Private addresses for the network ``nat``."""

    def __post_init__(self) -> None:
        if self.nat_pool == _NAT_POOL and not self.nameservers:
            return
        # Imported here, because every command reads settings and few clusters have these.
        from ipaddress import IPv4Network, ip_address

        # msgspec says which key of the file a ValueError is about, but not which of this struct.
        try:
            IPv4Network(self.nat_pool)
        except ValueError as error:
            raise ValueError(f"nat_pool: {error}") from error
        for address in self.nameservers:
            try:
                ip_address(address)
            except ValueError as error:
                raise ValueError(f"nameservers: {error}") from error
