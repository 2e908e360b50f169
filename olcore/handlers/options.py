"""The values of the configuration that the worker's own logic goes by."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from olcore.interfaces import Limits, Network

if TYPE_CHECKING:
    from olcore.config import Config

MIB = 1 << 20

_INSTANCES_PER_CORE = 4
_SHARE_PERCENT = 80
"""Of the machine's memory, for the instances of one worker unless configured otherwise."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is taken out of ``Config``, resolved: no zero stands for a default any more."""

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

    @classmethod
    def of(cls, core: Config) -> Options:
        """Take it out of *core*, whose paths are absolute."""
        return cls(
            limits=core.limits,
            max_limits=core.max_limits,
            network=core.network,
            max_network=core.max_network,
            max_instances=core.max_instances or _INSTANCES_PER_CORE * (os.cpu_count() or 1),
            max_queue=core.max_queue,
            idle_timeout_s=core.idle_timeout_s,
            pause_after_ms=core.pause_after_ms,
            memory_pool_mb=core.memory_pool_mb or _machine_mb() * _SHARE_PERCENT // 100,
            registry_cache_ms=core.registry_cache_ms,
            registry_timeout_s=core.registry_timeout_s,
            max_bundle_mb=core.max_bundle_mb,
            max_bundle_files=core.max_bundle_files,
            packages_dir=Path(core.packages_dir),
        )


def _machine_mb() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB
