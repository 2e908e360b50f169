"""Whether the worker takes new requests; closed once, when it starts to drain."""

from __future__ import annotations

from olcore.errors import DrainingError


class Gate:
    """Open until ``close`` is called.

    A connection that is kept alive outlives the listening socket, so that requests still arrive on it while the worker
    drains; the gate is what turns them away.
    """

    __slots__ = ("is_open",)

    def __init__(self) -> None:
        self.is_open = True

    def close(self) -> None:
        """Turn every later request away; closing twice is closing once."""
        self.is_open = False

    def draining(self) -> DrainingError:
        """Make the error for a request that comes when the gate is closed."""
        return DrainingError(
            "the worker is stopping and takes no new requests",
            hint="send it to another worker, or again when this one has been restarted",
            retry_after_s=1,
        )
