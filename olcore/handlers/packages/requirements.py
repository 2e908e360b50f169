"""Reads which packages a handler asks for.

The file is a tenant's, and what is read from it is handed to a program that runs as the host's root. So a line is a
name with a version and no more: an option could move the index, a path could name a file of the host, a URL a service
that only the host reaches, and ``${NAME}`` a variable of the worker's environment.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from olcore.errors import PackagesError

if TYPE_CHECKING:
    from pathlib import Path

FILES = ("packages.txt", "requirements.txt")
"""Which file is read; the first one there is."""

MAX_BYTES = 256 * 1024
MAX_LINE = 1000

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_CLAUSE = r"(?:===?|[<>~!]=|[<>])\s*[\w.*+!-]+"
_CLAUSES = rf"{_CLAUSE}(?:\s*,\s*{_CLAUSE})*"
_REQUIREMENT = re.compile(
    rf"(?P<name>{_NAME})\s*(?:\[[\w\s,.-]*\])?\s*(?:{_CLAUSES}|\(\s*{_CLAUSES}\s*\))?\s*(?:;[^@$/\\]*)?"
)
# OpenLambda's line: the module to import, a colon, the name to install.
_IMPORT_INSTALL = re.compile(rf"[A-Za-z_][\w.]*\s*:\s*(?P<install>{_NAME}.*)")
_COMMENT = re.compile(r"(^|\s)#.*")
_HASH = re.compile(r"\s+--hash[= ]\S+")


def read(code: Path) -> tuple[str, ...]:
    """Read the requirements of the handler in the folder *code*, each a name with an optional version; empty without a file.

    Raises:
        PackagesError: A line is not a requirement, or asks for what a handler may not; names file and line.
    """
    for name in FILES:
        file = code / name
        if file.is_file() and not file.is_symlink():
            return parse(_text(file), name)
    return ()


def parse(text: str, file: str) -> tuple[str, ...]:
    """Parse the lines of *text*; *file* is named in errors.

    Raises:
        PackagesError: As ``read`` does.
    """
    found = []
    begun = ""
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        # A line that ends with a backslash goes on: pip-compile writes hashes so.
        if line.endswith("\\") and number < len(lines):
            begun += line[:-1] + " "
            continue
        # Hashes are dropped: the lock has those of the wheels that were chosen.
        bare = _HASH.sub("", _COMMENT.sub("", begun + line)).rstrip("\\").strip()
        begun = ""
        if bare:
            found.append(requirement(bare, f"{file} line {number}"))
    return tuple(found)


def requirement(line: str, where: str) -> str:
    """Check one requirement and return it without OpenLambda's prefix.

    Raises:
        PackagesError: It is no requirement, or asks for what a handler may not.
    """
    if len(line) > MAX_LINE:
        raise PackagesError(f"{where} has {len(line)} characters, over the limit of {MAX_LINE}")
    old = _IMPORT_INSTALL.fullmatch(line)
    wanted = old["install"] if old and "//" not in line else line
    is_option = re.search(r"(^|\s)-", line) is not None
    if _REQUIREMENT.fullmatch(wanted) and not is_option:
        return wanted
    if is_option:
        raise PackagesError(
            f"{where}: {line!r} has an option; only requirements can stand here",
            hint="indexes and wheel folders are the operator's settings (package_index, package_find_links)",
        )
    if any(sign in line for sign in "@/\\$"):
        raise PackagesError(
            f"{where}: {line!r} names a URL or a path; only packages of the index can be installed",
            hint="write NAME==VERSION, or put the wheel into the operator's package_find_links folder",
        )
    raise PackagesError(
        f"{where}: {line!r} is not a requirement", hint="write NAME, NAME==VERSION or NAME>=VERSION"
    )


def _text(file: Path) -> str:
    try:
        data = file.read_bytes()
        if len(data) > MAX_BYTES:
            raise PackagesError(f"{file.name} has {len(data)} bytes, over the limit of {MAX_BYTES}")
        return data.decode("utf-8-sig")  # some editors begin a file with a mark of its encoding
    except UnicodeDecodeError as error:
        raise PackagesError(f"{file.name} is not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise PackagesError(f"{file.name} cannot be read: {error.strerror}") from error
