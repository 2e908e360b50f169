"""What happens in a worker, as the values that the event hooks are told."""

from __future__ import annotations

import msgspec

from olcore.interfaces.sandbox import Death


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The worker that an event is about."""

    cluster_name: str
    worker_name: str
    url: str
    sandbox: str
    registry: str


class InstanceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The instance that an event is about."""

    id: str
    handler: str
    version: str
    cold_start_s: float
    """From the decision to create it until it could serve; 0 while it cannot."""


class Invocation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request that reached a handler's queue."""

    request_id: str
    handler: str
    version: str
    instance: str
    """Empty when the request never reached one."""
    cold: bool
    """Whether the instance had served nothing before."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How an invocation ended."""

    status: int
    """The HTTP status."""
    code: str
    """``ok``, or the error's code."""
    waited_s: float
    """From arrival until an instance took it."""
    ran_s: float
    """From the frame out to the frame in."""
    body_bytes: int
    result_bytes: int


class DestroyReason(msgspec.Struct, frozen=True, kw_only=True):
    """Why an instance is no more."""

    reason: str
    """``died``, ``timeout``, ``idle``, ``evicted``, ``replaced`` (newer code), ``load_failed``, ``abandoned`` (its
    caller went away in the middle of a call), ``single_use`` (its handler wants a fresh one each time) or ``stopping``."""
    death: Death
