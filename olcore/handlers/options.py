"""The values of the configuration that the worker's own logic goes by."""

from __future__ import annotations

from pathlib import Path

import msgspec

from olcore.interfaces import Limits, Network

MIB = 1 << 20


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What worker.py takes out of ``Config``, resolved: no zero stands for a default any more."""

    limits: Limits
    """For a handler that says nothing."""
    max_limits: Limits
    """What a handler may ask for at most."""
    network: Network
    """For a handler that says nothing."""
    max_network: Network = Network.NAT
    """The widest network that a handler may ask for by itself; ``network`` is always allowed."""
    max_instances: int
    """Of one handler at once, at least 1."""
    max_queue: int
    idle_timeout_s: float
    pause_after_ms: int
    """0 means never."""
    memory_pool_mb: int
    registry_cache_ms: int
    registry_timeout_s: float = 10.0
    max_bundle_mb: int
    max_bundle_files: int
    packages_dir: Path
