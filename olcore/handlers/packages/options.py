"""The settings of package installation, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageOptions:
    """Where packages come from, and what to do when they cannot be had; the configuration's ``package_*`` keys."""

    index: str = ""
    """The package index's URL; empty means uv's own choice."""
    extra_indexes: tuple[str, ...] = ()
    """More indexes, asked before the first."""
    find_links: str = ""
    """A folder of wheels, or the URL of a page that links to some."""
    offline: bool = False
    """Use no network: what uv has cached and what ``find_links`` names must do."""
    environment: Mapping[str, str] | None = None
    """What uv finds in its environment; ``None`` is the worker's own."""
    allow_source_builds: bool = False
    """Build what has no wheel, as a user without privileges."""
    build_environment: Mapping[str, str] = field(default_factory=dict)
    """What is in the environment of a build: the way to the index, and no other secret of the worker's."""
    private: bool = False
    """Show a handler its own wheels only, not every wheel of the cluster."""
    retry_s: float = 60.0
    """How long a failure is remembered."""
    timeout_s: float = 300.0
    """No run of uv may take longer."""
