"""Registers this plugin's backends with olcore."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from olcore import hookimpl
from olcore.interfaces import Registry, RegistryBackend, RegistryContext

if TYPE_CHECKING:
    from collections.abc import Sequence


class SqliteSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the ``sqlite`` registry."""

    file: str = ""
    """The database; empty means ``handlers.sqlite`` in the cluster's registry folder."""


def _make(context: RegistryContext, settings: SqliteSettings) -> Registry:
    # Imported here, because a worker that uses another registry need not pay for this one.
    from ol_registry_sqlite.registry import SqliteRegistry

    return SqliteRegistry(context, settings)


@hookimpl
def ol_registry_backends() -> Sequence[RegistryBackend[Any]]:
    """Offer ``sqlite``."""
    return [
        RegistryBackend(
            name="sqlite",
            summary="handlers are bundles in one SQLite file",
            settings=SqliteSettings,
            make=_make,
        )
    ]
