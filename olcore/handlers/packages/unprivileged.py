"""Runs uv where it may build from source: that runs the package's own code, so not as the host's root.

util-linux does the walls: ``unshare`` makes new mount, pid, ipc and uts namespaces, ``setpriv`` becomes user 65534 without
capabilities or a way to get any. The end of the first process ends all others, so nothing still writes when the result
is copied. The network stays: build requirements come from the index.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from typing import TYPE_CHECKING

from olcore.errors import PackagesError

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = 65534
LINKS = "links"

_PROGRAMS = ("unshare", "setpriv", "mount", "sh")

# Arguments: the work folder, a folder of wheels or nothing, then folders that must be seen although they may be below
# root's home, "--", and the command. Root's home is replaced by an empty one that has only these.
_SCRIPT = """
set -eu
work=$1 links=$2
shift 2
if [ -n "$links" ]; then mount --bind "$links" "$work/links"; fi
number=0
below=
while [ "$1" != -- ]; do
    case "$1" in /root/*)
        number=$((number + 1))
        mkdir "$work/keep$number"
        mount --bind "$1" "$work/keep$number"
        below="$below $number:$1"
    esac
    shift
done
shift
mount -t tmpfs -o mode=755 tmpfs /root
for pair in $below; do
    mkdir -p "${pair#*:}"
    mount --move "$work/keep${pair%%:*}" "${pair#*:}"
done
cd "$work/empty"
exec setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all -- "$@"
"""


def why_not() -> str | None:
    """Say what is missing for building from source; ``None`` when it can be done."""
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"building from source needs {' and '.join(missing)} of util-linux"
    if any(" " in path for path in _seen()):
        return "building from source needs a Python whose path has no space"
    return None


def command(work: Path, find_links: str, inner: list[str]) -> list[str]:
    """Wrap the command *inner*; it finds itself in an empty folder.

    Args:
        work: A folder that ``make_work`` has prepared.
        find_links: A folder of wheels, to be seen as the folder ``links`` in *work*; or empty.
        inner: A program and its arguments.
    """
    return [
        *(
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--ipc",
            "--uts",
        ),
        *("--", "sh", "-c", _SCRIPT, "sh", str(work), find_links, *_seen(), "--", *inner),
    ]


def make_work(work: Path) -> dict[str, str]:
    """Prepare the folder *work*, and say what the environment in there has."""
    work.chmod(0o755)
    (work / LINKS).mkdir()
    for name in ("empty", "home", "tmp", "cache", "out"):
        (work / name).mkdir()
        os.chown(work / name, NOBODY, NOBODY)
    return {
        "HOME": str(work / "home"),
        "TMPDIR": str(work / "tmp"),
        "UV_CACHE_DIR": str(work / "cache"),
    }


def copy_result(made: Path, target: Path) -> None:
    """Copy the files in *made*, a stranger's, to *target*, which does not exist; links and special files are refused.

    Raises:
        PackagesError: There is something else than files and folders.
    """
    target.mkdir()
    for path in sorted(made.rglob("*")):
        mode = path.lstat().st_mode
        there = target / path.relative_to(made)
        if stat.S_ISDIR(mode):
            there.mkdir()
        elif stat.S_ISREG(mode):
            shutil.copyfile(path, there, follow_symlinks=False)
            there.chmod(0o755 if mode & 0o100 else 0o644)
        else:
            raise PackagesError(f"the build made {str(path.relative_to(made))!r}, which is no file")


def _seen() -> list[str]:
    return sorted({sys.prefix, sys.base_prefix})
