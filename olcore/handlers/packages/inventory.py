"""Says which wheels are installed and who uses them, and removes those that nobody does."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import msgspec

from olcore.errors import PackagesError
from olcore.handlers.packages import contents, locks
from olcore.handlers.packages.files import locked
from olcore.handlers.packages.private import drop_views_of
from olcore.handlers.packages.store import TEMPORARY, drop_records, installed

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

_WAIT_S = 30.0


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """One wheel on disk."""

    wheel: str
    """Its folder's name."""
    size_bytes: int
    used_by: tuple[str, ...]
    """The handlers whose newest known version wants it, sorted."""
    is_preloaded: bool = False
    """Whether an import cache imports it at start, whoever uses it."""


def inventory(packages: Path, lock_dir: Path, preloaded: Collection[str] = ()) -> list[Installed]:
    """List the wheels in *packages*, sorted by name.

    Args:
        packages: The ``packages`` folder.
        lock_dir: Where the lock files are.
        preloaded: The wheels that import caches import at start.
    """
    used: dict[str, list[str]] = {}
    for user in locks.users(lock_dir):
        for folder in user.folders:
            used.setdefault(folder, []).append(user.handler)
    return [
        Installed(
            wheel=folder.name,
            size_bytes=contents.size_bytes(folder),
            used_by=tuple(used.get(folder.name, ())),
            is_preloaded=folder.name in preloaded,
        )
        for folder in installed(packages)
    ]


async def prune(
    packages: Path, lock_dir: Path, handlers: Collection[str], preloaded: Collection[str] = ()
) -> Sequence[Installed]:
    """Remove the wheels that none of *handlers* and no import cache uses, and say which.

    Args:
        packages: The ``packages`` folder.
        lock_dir: Where the lock files are.
        handlers: Every handler there is; what is known of others is forgotten.
        preloaded: The wheels that import caches import at start.

    Raises:
        PackagesError: A worker is preparing packages, and does not come to an end.
    """
    if not lock_dir.is_dir():
        return ()
    try:
        async with locked(locks.gate(lock_dir), _WAIT_S):
            for user in locks.users(lock_dir):
                if user.handler not in handlers:
                    locks.forget(lock_dir, user.handler)
            found = inventory(packages, lock_dir, preloaded)
            unused = [one for one in found if not one.used_by and not one.is_preloaded]
            _remove(packages, [one.wheel for one in unused])
            return unused
    except TimeoutError as error:
        raise PackagesError(
            f"packages are being installed into {str(packages)!r} for over {_WAIT_S:g} s",
            hint="try again when the worker's log says that they are installed",
        ) from error


def _remove(packages: Path, wheels: Sequence[str]) -> None:
    drop_views_of(packages, wheels)
    for wheel in wheels:
        # Out of sight by one rename first: nobody sees a wheel that is half gone.
        grave = packages / TEMPORARY / f"removed-{wheel}"
        grave.parent.mkdir(mode=0o700, exist_ok=True)
        shutil.rmtree(grave, ignore_errors=True)
        (packages / wheel).rename(grave)
        shutil.rmtree(grave)
    drop_records(packages)
