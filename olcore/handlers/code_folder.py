"""The worker's folder of handlers' code: ``<name>/<version>``, each put in place and taken away by one rename."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from olcore.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from collections.abc import Set as AbstractSet

    from olcore.interfaces import HandlerVersion

_VERSION = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,128}")
# No handler can be called so: '~' is not among the letters of names.
_PULLING = "~pull-"
_TRASH = "~trash-"


def check_version(version: HandlerVersion) -> None:
    """Refuse a version that is no name of a folder, before it reaches any path.

    Raises:
        RegistryError: The registry is wrong.
    """
    if not _VERSION.fullmatch(version.version):
        raise RegistryError(f"the registry calls a version {version.version!r}")


class CodeFolder:
    """Every version that has been pulled and not been removed.

    Args:
        root: The worker's own.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def start(self) -> None:
        """Make it, and clear what a crash left half done."""
        self._root.mkdir(parents=True, exist_ok=True)
        for left in [*self._root.glob(f"{_PULLING}*"), *self._root.glob(f"{_TRASH}*")]:
            shutil.rmtree(left)

    def path(self, version: HandlerVersion) -> Path:
        """Say where *version* is when it is here."""
        return self._root / version.name / version.version

    def find(self, version: HandlerVersion) -> Path | None:
        """Return the folder of *version*, from now on the newest of its handler; ``None`` when it is not here."""
        folder = self.path(version)
        try:
            os.utime(folder)
        except FileNotFoundError:
            return None
        return folder

    def newest(self, name: str) -> str | None:
        """Say which version of *name* was pulled or found last, in this run or an earlier one."""
        try:
            versions = sorted(
                (self._root / name).iterdir(), key=lambda folder: folder.stat().st_mtime_ns
            )
        except FileNotFoundError:
            return None
        return versions[-1].name if versions else None

    @asynccontextmanager
    async def arriving(self) -> AsyncIterator[Path]:
        """Make an empty folder for a version on its way; what is in it at the end goes."""
        folder = Path(tempfile.mkdtemp(prefix=_PULLING, dir=self._root))
        try:
            yield folder
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def put(self, version: HandlerVersion, arrived: Path) -> Path:
        """Put what has arrived in place as *version*, unless that is here already."""
        # mkdtemp keeps it from others; the sandbox's uid must be able to enter.
        arrived.chmod(0o755)
        folder = self.path(version)
        folder.parent.mkdir(exist_ok=True)
        if not folder.is_dir():
            arrived.rename(folder)
        return folder

    def set_aside(self, name: str, keep: AbstractSet[str]) -> list[Path]:
        """Take away the versions of *name* that are not in *keep*, and say what is to be deleted."""
        aside = []
        try:
            versions = list((self._root / name).iterdir())
        except FileNotFoundError:
            return []
        for folder in versions:
            if folder.name not in keep:
                # Moved first, so that nobody ever finds a half-removed version under its name.
                trash = Path(tempfile.mkdtemp(prefix=_TRASH, dir=self._root))
                folder.rename(trash / "code")
                aside.append(trash)
        return aside
