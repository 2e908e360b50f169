"""Keeps what was learned from one run of a worker to the next.

What handlers want and import is kept, not the tree itself: the tree grows again from it, in the order of its worth, and
so fits what is installed and allowed now.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ol_cache_import.ledger import Demand, Ledger, Module
from olcore.interfaces import Wanted

if TYPE_CHECKING:
    from ol_cache_import.growth import Unfit

_log = logging.getLogger(__name__)


class SavedDemand(msgspec.Struct, frozen=True, kw_only=True):
    """One handler."""

    wanted: Wanted
    modules: dict[str, Module]
    weight: float
    age_s: float
    """How long ago, when it was saved, *weight* was right."""


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    saved_s: float
    """Seconds since 1970."""
    demands: list[SavedDemand]
    poison: list[frozenset[str]] = []


def save(file: Path, ledger: Ledger, unfit: Unfit, now_s: float, wall_s: float) -> None:
    """Write what was learned to *file*, whole or not at all.

    Args:
        file: Its folder is made when needed.
        ledger: What handlers want.
        unfit: What cannot be preloaded.
        now_s: Now, on the ledger's clock.
        wall_s: Now, in seconds since 1970.
    """
    demands = [
        SavedDemand(
            wanted=demand.wanted,
            modules=demand.modules,
            weight=demand.weight,
            age_s=now_s - demand.seen_s,
        )
        for demand in ledger.demands.values()
    ]
    # Sets that lacked something are tried anew: what they lacked may be learned by then. So are those whose zygotes
    # were killed: the next run may have the memory. What crashed is not.
    saved = Saved(saved_s=wall_s, demands=demands, poison=list(unfit.poison))
    file.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(fd, "wb") as out:
            out.write(msgspec.json.encode(saved))
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(
    file: Path, packages: Path, ledger: Ledger, unfit: Unfit, now_s: float, wall_s: float
) -> None:
    """Read *file* into *ledger* and *unfit*, as far as its wheels are still installed in *packages*.

    A file that is missing or damaged teaches nothing.
    """
    try:
        saved = msgspec.json.decode(file.read_bytes(), type=Saved)
    except FileNotFoundError:
        return
    except (OSError, msgspec.DecodeError) as error:
        _log.warning("import cache: %s cannot be read and is ignored: %s", file, error)
        return
    passed_s = max(0.0, wall_s - saved.saved_s)
    for one in saved.demands:
        if all((packages / wheel.folder).is_dir() for wheel in one.wanted.wheels):
            ledger.demands[one.wanted.handler] = Demand(
                wanted=one.wanted,
                modules=dict(one.modules),
                weight=one.weight,
                seen_s=now_s - passed_s - one.age_s,
            )
    unfit.poison.update(saved.poison)
