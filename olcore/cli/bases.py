"""Fills a new cluster's ``base`` folder with the root file system that ``olcore new --base`` names."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from olcore.cli import base_files, base_python
from olcore.errors import ClusterError, PluginError
from olcore.interfaces import BaseSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from olcore.interfaces import BaseArchive
    from olcore.plugins import Implementation, Plugins

HOST = "host"
"""An empty base folder, with which a backend takes its default."""

_SCHEME = re.compile(r"[a-z][a-z0-9_-]*")


def fill(base: Path, wanted: str, plugins: Plugins) -> str:
    """Unpack what *wanted* names into the empty folder *base*, and check it; returns one line about it.

    Args:
        base: Of a cluster that is being made; left half full on failure.
        wanted: A folder, a tar archive, or what a plugin knows, as ``docker:IMAGE``.
        plugins: Who may know it.

    Raises:
        ClusterError: There is no such thing, it cannot be read, or its Python cannot run the guest.
    """
    archive = _find(base, wanted, plugins)
    if os.geteuid() != 0:
        raise ClusterError(
            f"the base {wanted!r} cannot be unpacked: its files must belong to root",
            hint="run it as root, as the worker will have to",
        )
    with archive as opened, _progress(f"unpacking {wanted}", opened.size_bytes) as report:
        base_files.unpack(opened, base, report)
    return f"{wanted}, with {base_python.require(base)}"


def _find(base: Path, wanted: str, plugins: Plugins) -> AbstractContextManager[BaseArchive]:
    path = Path(wanted).absolute()
    if wanted and path.is_dir():
        if base.resolve().is_relative_to(path.resolve()):
            raise ClusterError(
                f"the base {wanted!r} holds the cluster itself", hint="make the cluster elsewhere"
            )
        return base_files.folder_archive(path)
    if path.is_file():
        return base_files.file_archive(path)
    scheme, colon, name = wanted.partition(":")
    sources = _sources(plugins)
    if colon and scheme in sources:
        return sources[scheme].open(name)
    kinds = ["a folder", "a tar archive", *(f"{each}:NAME" for each in sorted(sources))]
    hint = f"it can be 'host', {', '.join(kinds)}"
    if colon and _SCHEME.fullmatch(scheme):
        hint += f"; a plugin such as ol-sandbox-{scheme} may know what {scheme!r} is"
    raise ClusterError(f"there is no base {wanted!r}", hint=hint)


def _sources(plugins: Plugins) -> dict[str, BaseSource]:
    """Ask every plugin; one that fails breaks no other."""
    found: dict[str, BaseSource] = {}
    for implementation in plugins.implementations("ol_base_sources"):
        try:
            found |= _sources_of(implementation, found)
        except Exception as error:  # noqa: BLE001 - one plugin's fault breaks no command
            said = (
                str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
            )
            plugins.complain(implementation.plugin, f"ol_base_sources: {said}")
    return found


def _sources_of(
    implementation: Implementation, taken: dict[str, BaseSource]
) -> dict[str, BaseSource]:
    own: dict[str, BaseSource] = {}
    for source in implementation.call({}):
        if not isinstance(source, BaseSource):
            raise PluginError(f"it answered {source!r}, not a BaseSource")
        if not _SCHEME.fullmatch(source.scheme):
            raise PluginError(f"{source.scheme!r} is no scheme; one matches {_SCHEME.pattern}")
        if source.scheme in taken or source.scheme in own:
            raise PluginError(f"the scheme {source.scheme!r} is taken")
        own[source.scheme] = source
    return own


@contextmanager
def _progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
