"""Registers the defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from olcore.builtin.lifo import Lifo, LifoSettings
from olcore.hookspecs import hookimpl
from olcore.interfaces import SchedulerBackend

if TYPE_CHECKING:
    from collections.abc import Sequence


@hookimpl
def ol_scheduler_backends() -> Sequence[SchedulerBackend[Any]]:
    """Offer ``lifo``."""
    return [
        SchedulerBackend(
            name="lifo",
            summary="The most recently used idle instance, else a new one, else a bounded queue",
            settings=LifoSettings,
            make=lambda _settings: Lifo(),
        )
    ]
