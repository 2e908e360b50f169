"""What an operator may write under ``sock`` in template.json."""

from __future__ import annotations

import msgspec
import pytest

from ol_sandbox_sock.settings import SockSettings


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"nat_pool": "everything"}, "nat_pool: .*everything"),
        ({"nat_pool": "10.1.2.3/16"}, "nat_pool: 10.1.2.3/16 has host bits set"),
        ({"nameservers": ["192.0.2.1", "dns.example"]}, "nameservers: 'dns.example'"),
    ],
)
def test_what_is_no_address_is_refused_before_a_worker_starts(
    said: dict[str, object], reason: str
) -> None:
    with pytest.raises(msgspec.ValidationError, match=reason):
        msgspec.convert(said, SockSettings)


def test_addresses_are_taken() -> None:
    said = {"nat_pool": "10.9.0.0/16", "nameservers": ["192.0.2.1", "2001:db8::53"]}
    assert msgspec.convert(said, SockSettings).nat_pool == "10.9.0.0/16"
