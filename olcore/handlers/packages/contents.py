"""Looks into the folder of one installed wheel: its tag, the modules it provides, its ``.pth`` files."""

from __future__ import annotations

import hashlib
from email.parser import HeaderParser
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES
from typing import TYPE_CHECKING

from olcore.errors import PackagesError

if TYPE_CHECKING:
    from pathlib import Path

# Python compiles about 2 MiB/s: what is below costs a cold start under half a millisecond, and bytecode would be no gain.
_LITTLE_SOURCE_BYTES = 1 << 10
_SKIPPED = ("__pycache__", "bin")


def tag(folder: Path) -> str:
    """Read the wheel's tag such as ``cp311-cp311-manylinux_2_17_x86_64``; several are compressed into one, as in a file's name.

    Raises:
        PackagesError: There is no wheel in *folder*.
    """
    tags = HeaderParser().parsestr(_metadata(folder, "WHEEL")).get_all("Tag", [])
    if not tags:
        raise PackagesError(f"the wheel in {folder.name!r} names no tag")
    parts = zip(*(one.split("-") for one in tags), strict=True)
    return "-".join(".".join(dict.fromkeys(part)) for part in parts)


def identity(folder: Path) -> str:
    """Say in 8 digits which files the wheel has, whoever installed them; two builds of one version differ.

    Raises:
        PackagesError: There is no wheel in *folder*.
    """
    # What installers write beside the wheel's own files differs from one installation to the next.
    own = ("INSTALLER,", "REQUESTED,", "RECORD,", "uv_cache.json,", "direct_url.json,")
    lines = [
        line
        for line in _metadata(folder, "RECORD").splitlines()
        if not line.rpartition("/")[2].startswith(own) and not line.startswith("bin/")
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:8]


def modules(folder: Path, prefix: str = "") -> frozenset[str]:
    """Name what can be imported from *folder*: modules and packages, ``a.b`` for a portion of the namespace package ``a``."""
    found: set[str] = set()
    for entry in folder.iterdir():
        if entry.name in _SKIPPED or entry.name.endswith((".dist-info", ".data", ".libs")):
            continue
        name = _module(entry.name) if entry.is_file() else entry.name
        if not name or not name.isidentifier():
            continue
        if entry.is_file() or _is_regular(entry):
            found.add(prefix + name)
        else:
            found |= modules(entry, f"{prefix}{name}.")
    return frozenset(found)


def top_level(code: Path) -> frozenset[str]:
    """Name what can be imported from the top of a handler's folder; every folder counts as a package."""
    names = (_module(one.name) if one.is_file() else one.name for one in code.iterdir())
    return frozenset(name for name in names if name.isidentifier() and name not in _SKIPPED)


def is_worth_compiling(code: Path) -> bool:
    """Whether a handler's own sources have no bytecode yet, and would be the quicker for it."""
    if any(code.rglob("__pycache__")):
        return False
    return sum(file.lstat().st_size for file in code.rglob("*.py")) >= _LITTLE_SOURCE_BYTES


def has_pth(folder: Path) -> bool:
    """Whether the wheel has ``.pth`` files, which only Python's ``site`` understands."""
    return any(folder.glob("*.pth"))


def size_bytes(folder: Path) -> int:
    """Add up the files below *folder*."""
    return sum(
        file.lstat().st_size
        for file in folder.rglob("*")
        if file.is_file() and not file.is_symlink()
    )


def _is_regular(package: Path) -> bool:
    return any((package / f"__init__{suffix}").exists() for suffix in (".py", *EXTENSION_SUFFIXES))


def _module(file: str) -> str:
    # The guest's extension suffix may be another than ours: everything up to the first dot is the name.
    is_module = file.endswith((*SOURCE_SUFFIXES, ".so"))
    return file.partition(".")[0] if is_module else ""


def _metadata(folder: Path, name: str) -> str:
    for file in folder.glob(f"*.dist-info/{name}"):
        return file.read_text(errors="replace")
    raise PackagesError(f"the wheel in {folder.name!r} has no {name}")
