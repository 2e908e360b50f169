"""Reads a tree of packages to be imported at start, in the form of OpenLambda's zygote trees.

::

    {
        "packages": ["numpy"],
        "children": [
            {"packages": ["pandas==2.2.3"]},
            {"packages": ["scipy"], "imports": ["scipy.sparse"]},
        ],
    }

A node has its parents' packages too. A package is installed by then, since nothing is installed here: what is missing
is left out with a line in the log, and looked for again when a handler was seen to want new wheels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import Distribution
from typing import TYPE_CHECKING

import msgspec

from olcore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:==\s*([^\s;,]+))?")


class Branch(msgspec.Struct, frozen=True, kw_only=True):
    """One node of the file; keys that are not known are ignored, as OpenLambda's trees have more."""

    packages: list[str] = []
    imports: list[str] = []
    """What to import; empty means every top-level module of the packages."""
    children: list[Branch] = []


@dataclass(frozen=True, slots=True)
class Planned:
    """One node to make, parents first."""

    wheels: frozenset[str]
    """The folders on its path, dependencies and parents' included."""
    imports: tuple[str, ...]


def read(file: Path) -> Branch:
    """Read the tree in *file*.

    Raises:
        ConfigError: It cannot be read, or is no such tree.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=Branch)
    except OSError as error:
        raise ConfigError(
            f"import_cache_tree: cannot read {str(file)!r}: {error.strerror}",
            hint="a relative path counts from each worker's own folder; an absolute one does for all of them",
        ) from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"import_cache_tree: {str(file)!r}: {error}") from error


class Installed:
    """The wheels in a folder, by name.

    Args:
        packages: The folder mapped to ``/packages``.
    """

    def __init__(self, packages: Path) -> None:
        self._folders: dict[str, list[tuple[str, Path]]] = {}
        for folder in sorted(packages.iterdir()) if packages.is_dir() else ():
            name, _, rest = folder.name.partition("-")
            if rest and not folder.name.startswith("."):
                version = rest.partition("-")[0]
                self._folders.setdefault(normal(name), []).append((version, folder))

    def find(self, requirement: str) -> Path | None:
        """Find the wheel for a name with or without a pin; the newest without one."""
        found = _REQUIREMENT.match(requirement)
        if found is None:
            return None
        name, version = found.groups()
        there = self._folders.get(normal(name), [])
        fitting = [pair for pair in there if version is None or pair[0] == version]
        return max(fitting, key=lambda pair: _numbers(pair[0]))[1] if fitting else None

    def with_dependencies(self, folder: Path) -> set[Path]:
        """Name *folder* and the installed wheels that it requires, directly or not."""
        found: set[Path] = set()
        todo = [folder]
        while todo:
            one = todo.pop()
            if one in found:
                continue
            found.add(one)
            for info in one.glob("*.dist-info"):
                for line in Distribution.at(info).requires or ():
                    other = (
                        None
                        if "extra ==" in line
                        else self.find(re.split(r"[\s<>=!~;(\[]", line)[0])
                    )
                    if other is not None:
                        todo.append(other)
        return found


def plan(
    branch: Branch, installed: Installed, above: frozenset[str] = frozenset()
) -> Iterator[Planned | str]:
    """Go through the nodes below *branch*, parents first; a text is a package that is not installed.

    Args:
        branch: The tree.
        installed: What there is.
        above: The wheels of the parents.
    """
    folders: set[Path] = set()
    imports: list[str] = list(branch.imports)
    for package in branch.packages:
        folder = installed.find(package)
        if folder is None:
            yield package
            return
        folders |= installed.with_dependencies(folder)
        if not branch.imports:
            imports.extend(top_level(folder))
    wheels = above | {folder.name for folder in folders}
    if branch.packages:
        yield Planned(wheels, tuple(imports))
    for child in branch.children:
        yield from plan(child, installed, wheels)


def wheels_of(branch: Branch, packages: Path) -> set[str]:
    """Name the installed wheels that *branch* and what is below it stand for, dependencies included."""
    installed = Installed(packages)
    found: set[str] = set()
    todo = [branch]
    while todo:
        one = todo.pop()
        todo += one.children
        # A node is not made while one of its packages is missing; the others are kept for when it is there.
        for folder in filter(None, map(installed.find, one.packages)):
            found |= {wheel.name for wheel in installed.with_dependencies(folder)}
    return found


def top_level(folder: Path) -> list[str]:
    """Name the public modules and packages at the top of a wheel."""
    names = []
    for entry in sorted(folder.iterdir()):
        name = entry.name.partition(".")[0] if entry.suffix in (".py", ".so") else entry.name
        is_package = (entry / "__init__.py").is_file()
        if name.isidentifier() and not name.startswith("_") and (is_package or name != entry.name):
            names.append(name)
    return names


def normal(name: str) -> str:
    """Write a distribution's name as all its spellings are compared."""
    return re.sub(r"[-_.]+", "_", name).lower()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
