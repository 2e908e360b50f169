"""Registers this plugin's backends with olcore."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from olcore import hookimpl
from olcore.interfaces import ImportCacheBackend

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from olcore.interfaces import ImportCache, WorkerContext, ZygotePool


class TreeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the tree of zygotes."""

    import_cache_mb: Annotated[int, Meta(ge=1)] = 512
    """What the zygotes may use together, in MiB; those of ``import_cache_tree`` count, and are made whatever it says."""
    import_cache_tree: str = ""
    """A JSON file with a tree of packages to import at start, never given up; relative to the worker's folder."""
    half_life_s: Annotated[float, Meta(gt=0)] = 600.0
    """After so long a cold start counts half."""
    learn: bool = True
    """Whether to keep what was learned for the next start, in ``learned.json`` of the worker's folder ``tree``."""


def _make(context: WorkerContext, settings: TreeSettings, pool: ZygotePool) -> ImportCache:
    # Imported here, because a worker without an import cache need not have it.
    from ol_cache_import.cache import TreeCache

    return TreeCache(context, settings, pool)


def _preloads(settings: TreeSettings, worker_dir: Path, packages_dir: Path) -> Collection[str]:
    if not settings.import_cache_tree:
        return ()
    # Imported here for the same reason.
    from ol_cache_import import preload

    file = worker_dir / settings.import_cache_tree
    # A file that is gone asks for nothing; a worker that starts says so.
    return preload.wheels_of(preload.read(file), packages_dir) if file.exists() else ()


@hookimpl
def ol_import_cache_backends() -> Sequence[ImportCacheBackend[Any]]:
    """Offer ``tree``."""
    return [
        ImportCacheBackend(
            name="tree",
            summary="a tree of zygotes that have imported the packages that handlers share",
            settings=TreeSettings,
            make=_make,
            preloads=_preloads,
        )
    ]
