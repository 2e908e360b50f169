"""Asks the Python in a base folder whether it can run the guest, by starting it there without any rights."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from olcore.errors import ClusterError

if TYPE_CHECKING:
    from pathlib import Path

_OLDEST = (3, 9)
_CANDIDATES = ("/usr/local/bin/python3", "/usr/bin/python3", "/bin/python3")
"""Where backends look, in their order."""
_DEADLINE_S = 60.0
_ASK = """
import sys
print("%d.%d.%d" % sys.version_info[:3])
for name in ("ctypes", "json", "socket"):
    try:
        __import__(name)
    except ImportError as error:
        print("%s (%s)" % (name, error))
"""
# A stranger's program: nobody's uid, no network, and no process but its own to be seen.
_WALLS = ("unshare", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--")
_NOBODY = ("--userspec=65534:65534", "--groups=")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def require(base: Path) -> str:
    """Find the Python of *base* and check it; returns its version and place, for people.

    Raises:
        ClusterError: There is none that can run the guest; says what it lacks.
    """
    for program in ("unshare", "chroot"):
        if shutil.which(program, path=_PATH) is None:
            raise ClusterError(
                f"no program {program!r}, which starts the base's Python",
                hint="install util-linux and coreutils",
            )
    found = [path for path in _CANDIDATES if os.path.lexists(f"{base}{path}")]
    if not found:
        raise _unfit(f"it has none of {', '.join(_CANDIDATES)}")
    version, *lacks = _ask(base, found[0])
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        raise _unfit(f"its {found[0]} is Python {version}")
    if lacks:
        raise _unfit(f"its {found[0]}, Python {version}, cannot import {', '.join(lacks)}")
    return f"Python {version} at {found[0]}"


def _ask(base: Path, python: str) -> list[str]:
    inner = ["chroot", *_NOBODY, str(base), python, "-I", "-S", "-B", "-c", _ASK]
    try:
        done = subprocess.run(
            [*_WALLS, *inner],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_DEADLINE_S,
            env={"PATH": _PATH},
        )
    except subprocess.TimeoutExpired as error:
        raise _unfit(f"its {python} says nothing for {_DEADLINE_S:.0f} s") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise _unfit(f"its {python} does not run: {said[-1].removeprefix('chroot: ')}")
    return done.stdout.splitlines()


def _unfit(reason: str) -> ClusterError:
    return ClusterError(
        f"the base cannot run the guest: {reason}",
        hint="it takes a python3 >= 3.9 with ctypes, json and socket (Debian's python3, not python3-minimal)",
    )
