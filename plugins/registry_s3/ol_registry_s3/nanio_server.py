"""Becomes nanio, on a folder in which it first mends what a server that was killed has left half done.

nanio keeps an object as a file, and its size and etag in a *sidecar* beside it. It puts the one in place and then the
other, so a kill between leaves a new object under its old size and etag: cut off for every reader. A kill while it
writes the sidecar leaves that one's temporary file, whose fixed name then fails every later upload of the object.
(Both seen within 25 kills of nanio 0.1.7.) So before nanio starts, sidecars that do not fit are written anew.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_INTERNAL = ".nanio"
_SIDECARS = ".nanio-meta"
_ARRIVING = ".tmp."
_SIDECAR_ARRIVING = ".json.tmp"


def mend(folder: Path) -> list[Path]:
    """Make what is in *folder* whole, and say which objects got another sidecar.

    No server may run on it.

    Raises:
        OSError: Something there cannot be read or written.
    """
    mended = []
    for bucket in sorted(folder.iterdir()):
        if not bucket.is_dir() or bucket.is_symlink() or bucket.name.startswith(_INTERNAL):
            continue
        sidecars = bucket / _SIDECARS
        for left in list(sidecars.rglob(f"*{_SIDECAR_ARRIVING}")):
            left.unlink()
        for path in _files(bucket):
            sidecar = sidecars / f"{path.relative_to(bucket)}.json"
            if path.name.startswith(_ARRIVING):
                path.unlink()
            elif not _fits(sidecar, path):
                _describe(sidecar, path)
                mended.append(path)
    return mended


def _files(bucket: Path) -> Iterator[Path]:
    for top, folders, files in os.walk(bucket):
        folders[:] = [name for name in folders if name != _SIDECARS]
        # nanio does not follow links either.
        yield from (path for name in files if not (path := Path(top, name)).is_symlink())


def _fits(sidecar: Path, path: Path) -> bool:
    try:
        described, found = sidecar.stat(), path.stat()
        size: object = json.loads(sidecar.read_bytes())["size"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    # Written after the object, so an older one belongs to what was there before; at one tick of the clock, who knows.
    return size == found.st_size and described.st_mtime_ns > found.st_mtime_ns


def _describe(sidecar: Path, path: Path) -> None:
    with path.open("rb") as file:
        # S3's etag; nobody's security rests on it.
        etag = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    found = path.stat()
    told = {
        "etag": f'"{etag}"',
        "size": found.st_size,
        "last_modified": dt.datetime.fromtimestamp(found.st_mtime, dt.UTC).isoformat(),
    }
    sidecar.parent.mkdir(parents=True, exist_ok=True)
    arriving = sidecar.with_name(f"{path.name}{_SIDECAR_ARRIVING}")
    arriving.write_text(json.dumps(told))
    arriving.replace(sidecar)


def main(folder: str, *arguments: str) -> None:
    """Mend *folder* and go on as ``nanio serve`` with *arguments*, as the same process."""
    for path in mend(Path(folder)):
        sys.stderr.write(f"mended {path}\n")
    sys.stderr.flush()
    command = [sys.executable, "-P", "-m", "nanio", "serve", "--data-dir", folder, *arguments]
    os.execv(sys.executable, command)  # noqa: S606  # no shell is wanted


if __name__ == "__main__":
    main(*sys.argv[1:])
