"""Wheels made on the spot, so that a test of packages needs no index."""

from __future__ import annotations

import base64
import hashlib
import platform
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from olcore.interfaces import GuestInfo

THIS_PYTHON = GuestInfo(
    python=platform.python_version(),
    implementation=sys.implementation.name,
    machine=platform.machine(),
    libc=" ".join(platform.libc_ver()),
)
"""A guest that runs the Python of the test."""


class WheelFolder:
    """A folder of wheels, for ``package_find_links``.

    Args:
        folder: Does not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def add(
        self,
        name: str,
        version: str,
        files: Mapping[str, str],
        requires: Sequence[str] = (),
        tag: str = "py3-none-any",
    ) -> None:
        """Write a wheel of *name* with *files* into the folder."""
        info = f"{name}-{version}.dist-info"
        needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
        whole = dict(files)
        whole[f"{info}/METADATA"] = (
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
        )
        whole[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n"
        record = "".join(
            f"{path},sha256={_digest(text)},{len(text)}\n" for path, text in whole.items()
        )
        whole[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
        with zipfile.ZipFile(self.folder / f"{name}-{version}-{tag}.whl", "w") as bundle:
            for path, text in whole.items():
                bundle.writestr(path, text)


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
