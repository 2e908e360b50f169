"""Registers the sandbox ``sock``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import olcore
from ol_sandbox_sock.settings import SockSettings
from olcore.interfaces import SandboxBackend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from olcore.interfaces import SandboxPool, WorkerContext


def _make(context: WorkerContext, settings: SockSettings) -> SandboxPool:
    # Imported here, because a worker that uses another backend must not pay for ctypes.
    from ol_sandbox_sock.pool import SockPool

    return SockPool(context, settings)


def _why_unusable(settings: SockSettings) -> str | None:
    # Ditto.
    from ol_sandbox_sock.host import why_unusable

    return why_unusable(settings)


def _clean(context: WorkerContext, settings: SockSettings) -> Sequence[str]:
    # Ditto.
    from ol_sandbox_sock.pool import clean

    return clean(context, settings)


@olcore.hookimpl
def ol_sandbox_backends() -> Sequence[SandboxBackend[SockSettings]]:
    """Describe ``sock``."""
    return [
        SandboxBackend(
            name="sock",
            summary="processes forked from a zygote into namespaces of their own; starts in milliseconds",
            settings=SockSettings,
            make=_make,
            why_unusable=_why_unusable,
            clean=_clean,
        )
    ]
