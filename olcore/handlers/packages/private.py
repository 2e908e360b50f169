"""Makes, for one set of wheels, a folder to be mapped to ``/packages`` that shows these wheels and no others.

The folder is made of hard links: it takes no space but for its names, the page cache is shared with everybody who has
the same wheel, and a backend needs to map one folder only, as ever.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = ".private"


class PrivateFolders:
    """The private views of one ``packages`` folder, kept in a folder of it that sandboxes cannot enter.

    Args:
        packages: The ``packages`` folder.
    """

    def __init__(self, packages: Path) -> None:
        self._packages = packages
        self._views = packages / NAME

    def make(self, folders: Sequence[str]) -> Path:
        """Return the view that shows *folders*, and make it when there is none."""
        digest = hashlib.sha256("\0".join(sorted(folders)).encode()).hexdigest()[:32]
        view = self._views / digest
        if view.is_dir():
            return view
        self._views.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=self._views, prefix=".new-"))
        try:
            for name in folders:
                shutil.copytree(
                    self._packages / name, temporary / name, copy_function=os.link, symlinks=True
                )
            temporary.chmod(0o755)
            temporary.rename(view)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            # Another worker may have been faster; its view is as good.
            if not view.is_dir():
                raise
        return view


def drop_views_of(packages: Path, folders: Sequence[str]) -> None:
    """Remove every view that shows one of *folders*, so that removing these frees their space."""
    for view in (packages / NAME).glob("*"):
        if any((view / name).exists() for name in folders):
            shutil.rmtree(view, ignore_errors=True)
