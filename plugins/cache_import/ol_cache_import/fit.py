"""Says whether a handler may be forked from a zygote: whether it would find the modules that its own path leads to.

Two rules. The zygote has imported from no wheel that the handler does not want: that is the promise of the import cache.
And nothing that the zygote imported, or looked for in vain, is provided by a wheel or a file that the handler has and
the zygote had not: pandas that looked for numexpr and found none is not the pandas of a handler with numexpr, and
``import utils`` that found a wheel's is not that of a handler with a ``utils.py`` of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from olcore.interfaces import Wanted, Wheel


def why_unfit(
    wanted: Wanted, wheels: frozenset[str], loaded: Iterable[str], missed: Iterable[str]
) -> str | None:
    """Say why the handler of *wanted* may not be forked from a zygote; ``None`` when it may.

    Args:
        wanted: What the handler imports from.
        wheels: The folders on the zygote's path.
        loaded: Every module that the zygote has imported, by its full name.
        missed: Every module that it looked for in vain.
    """
    extra = wheels - {wheel.folder for wheel in wanted.wheels}
    if extra:
        return f"it has {min(extra)}, which {wanted.handler!r} does not want"
    others = provided(wheel for wheel in wanted.wheels if wheel.folder not in wheels)
    return conflict(others | wanted.modules, loaded, missed)


def provided(wheels: Iterable[Wheel]) -> frozenset[str]:
    """Put together the modules of *wheels*."""
    return frozenset().union(*(wheel.modules for wheel in wheels))


def conflict(others: frozenset[str], loaded: Iterable[str], missed: Iterable[str]) -> str | None:
    """Say which module one would find elsewhere with *others* on the path; ``None`` when there is none."""
    if not others:
        return None
    for name in loaded:
        if is_within(name, others):
            return f"it has imported {name!r}, which the handler has from elsewhere"
    # A namespace package that was not found is found when one of its portions is there; one that was found grows by
    # itself when the path does.
    namespaces = frozenset(parent for name in others for parent in _parents(name))
    for name in missed:
        if name in namespaces or is_within(name, others):
            return f"it looked in vain for {name!r}, which the handler has"
    return None


def is_within(name: str, modules: frozenset[str]) -> bool:
    """Whether *name* is one of *modules* or a module below one."""
    return name in modules or any(parent in modules for parent in _parents(name))


def _parents(name: str) -> Iterable[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
