"""Keeps what was resolved, one lock file for each content of requirements, so that a restart resolves nothing.

``<lock_dir>/<digest>.json`` holds the pins, ``<lock_dir>/users/<handler>.json`` which wheels a handler uses now.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from olcore.handlers.packages.files import write_whole
from olcore.handlers.packages.store import guest_key
from olcore.handlers.packages.uv import Pin

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from olcore.handlers.packages.options import PackageOptions
    from olcore.interfaces import GuestInfo, Wheel

LOCKS = ".locks"
"""The lock folder's name below the ``packages`` folder; the store's own folders have a dot as well."""


class Lock(msgspec.Struct, frozen=True, kw_only=True):
    """What one content of requirements was resolved to."""

    requirements: tuple[str, ...]
    pins: tuple[Pin, ...]
    guest: str = ""


class User(msgspec.Struct, frozen=True, kw_only=True):
    """What one handler uses."""

    handler: str
    folders: tuple[str, ...]
    """Its wheels."""


class Locks:
    """The lock files in one folder.

    Args:
        folder: Made when something is first written.
        guest: What was resolved for.
        options: Where packages come from: another index may resolve to something else.
    """

    def __init__(self, folder: Path, guest: GuestInfo, options: PackageOptions) -> None:
        self._folder = folder
        self._guest = guest_key(guest)
        self._context = [
            self._guest,
            options.index,
            *options.extra_indexes,
            options.find_links,
            str(options.allow_source_builds),
        ]

    def digest(self, requirements: Sequence[str]) -> str:
        """Name the lock of *requirements*."""
        text = "\0".join([*self._context, "\n", *requirements])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def read(self, digest: str) -> tuple[Pin, ...] | None:
        """Return the pins of a lock; ``None`` when there is none that can be read."""
        try:
            return msgspec.json.decode(self._path(digest).read_bytes(), type=Lock).pins
        except (OSError, msgspec.DecodeError):
            return None

    def write(self, digest: str, requirements: Sequence[str], pins: Sequence[Pin]) -> None:
        """Keep what *requirements* were resolved to."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = Lock(requirements=tuple(requirements), pins=tuple(pins), guest=self._guest)
        write_whole(self._path(digest), msgspec.json.format(msgspec.json.encode(lock)))

    def use(self, handler: str, wheels: Sequence[Wheel]) -> None:
        """Note what *handler* uses now, in place of what it used before."""
        file = self._folder / "users" / f"{handler}.json"
        if not wheels and not file.exists():
            return
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        user = User(handler=handler, folders=tuple(wheel.folder for wheel in wheels))
        write_whole(file, msgspec.json.encode(user))

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}.json"


def users(lock_dir: Path) -> Sequence[User]:
    """List which handler uses what, sorted by name; a file that cannot be read is left out."""
    found = []
    for file in sorted((lock_dir / "users").glob("*.json")):
        try:
            found.append(msgspec.json.decode(file.read_bytes(), type=User))
        except (OSError, msgspec.DecodeError):
            # Half-written is impossible, so it is of another version of olcore, which will write it anew.
            continue
    return found


def gate(lock_dir: Path) -> Path:
    """Name the lock that who installs holds together with others, and who removes holds alone."""
    return lock_dir / "gate"


def forget(lock_dir: Path, handler: str) -> None:
    """Note that *handler* is no more."""
    (lock_dir / "users" / f"{handler}.json").unlink(missing_ok=True)
