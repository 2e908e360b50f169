"""The contract of an import cache: which zygote an instance is forked from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

import msgspec

from olcore.interfaces.sandbox import ImportRecord, Settings, WorkerContext, Zygote, ZygotePool


class Wheel(msgspec.Struct, frozen=True, kw_only=True):
    """One installed wheel that a handler wants."""

    folder: str
    """Its folder's name below ``/packages``: ``<name>-<version>-<tag>``."""
    modules: frozenset[str]
    """Modules and packages at its top level; ``a.b`` for its portion of the namespace package ``a``."""
    pth: bool = False
    """Whether it has ``.pth`` files, so that ``site.addsitedir`` must see its folder."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What one version of a handler imports from."""

    handler: str
    wheels: tuple[Wheel, ...]
    """All its wheels, in the order of its ``sys.path``."""
    modules: frozenset[str] = frozenset()
    """Modules and packages at the top of its own folder, which comes first in its ``sys.path``."""


class ImportCache(ABC):
    """Keeps zygotes, and says which one to fork from.

    ``choose`` and ``observe`` are called on the event loop and must be quick. A zygote that ``choose`` returns has
    imported from no wheel that the handler does not want.
    """

    @abstractmethod
    async def start(self) -> None:
        """Begin; the pool has been started."""

    @abstractmethod
    async def close(self) -> None:
        """Destroy every zygote; idempotent, never raises."""

    @abstractmethod
    def choose(self, wanted: Wanted) -> Zygote | None:
        """Pick the best zygote there is now for a cold start; ``None`` is the empty root zygote. Never waits."""

    @abstractmethod
    def observe(self, wanted: Wanted, imported: Sequence[ImportRecord]) -> None:
        """Learn what an instance of that handler had to import after it was forked."""

    @abstractmethod
    def failed(self, zygote: Zygote, reason: str) -> None:
        """Learn that an instance could not be forked from *zygote*; it must not be chosen again."""

    @abstractmethod
    async def shrink(self, want_bytes: int) -> int:
        """Free memory, idle and least useful first, and say how many bytes were freed."""

    @abstractmethod
    def describe(self) -> Sequence[dict[str, object]]:
        """Say what is kept, one JSON object a zygote, for ``status`` and metrics."""


def _usable(_settings: object) -> str | None:
    return None


def _nothing(_settings: object, _worker_dir: Path, _packages_dir: Path) -> Collection[str]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportCacheBackend(Generic[Settings]):
    """The description of an import cache."""

    name: str
    summary: str
    settings: type[Settings]
    make: Callable[[WorkerContext, Settings, ZygotePool], ImportCache]
    why_unusable: Callable[[Settings], str | None] = _usable
    preloads: Callable[[Settings, Path, Path], Collection[str]] = _nothing
    """Names the wheels that the operator asked it to import, which are kept though no handler uses them; given
    ``worker_dir`` and ``packages_dir`` of a worker that need not run. Raises ConfigError when it cannot tell."""
