"""Registers this plugin's backends with olcore."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from olcore import hookimpl
from olcore.interfaces import Registry, RegistryBackend, RegistryContext

if TYPE_CHECKING:
    from collections.abc import Sequence


class LocalSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the local registry; its folder is the core's ``registry_dir``."""

    settle_ms: int = 50
    """A handler that changed less than so long ago may still be being copied, and is looked at again."""


def _make(context: RegistryContext, settings: LocalSettings) -> Registry:
    # Imported here, because a worker that uses another registry need not have it.
    from ol_registry_local.registry import LocalRegistry

    return LocalRegistry(context, settle_s=settings.settle_ms / 1000)


@hookimpl
def ol_registry_backends() -> Sequence[RegistryBackend[Any]]:
    """Offer ``local``."""
    return [
        RegistryBackend(
            name="local",
            summary="handlers are folders or bundles in the cluster's registry folder",
            settings=LocalSettings,
            make=_make,
        )
    ]
