"""Lists what is installed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console
from rich.table import Table

from olcore import config
from olcore.cli.common import cluster_option
from olcore.errors import OlcoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from olcore.cluster import Cluster
    from olcore.plugins import Plugins, PluginStatus

_HEADER = ("PLUGIN", "DISTRIBUTION", "BACKEND", "USABLE HERE")


@click.command("plugins")
@cluster_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_plugins(plugins: Plugins, cluster: Cluster, as_json: bool) -> None:
    """List every plugin, its backends, and whether each can run on this machine.

    Backends are asked with the cluster's settings where there is a cluster, and with the defaults else.
    """
    listed = plugins.listed(settings_of(plugins, cluster))
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(listed)).decode())
        return
    lines = list(rows(listed))
    if sys.stdout.isatty():
        _print_table(lines)
    else:
        _print_plain(lines)


def settings_of(plugins: Plugins, cluster: Cluster) -> dict[str, msgspec.Struct]:
    """Read the backends' settings of *cluster*; none where it cannot be read, which is not this command's business."""
    try:
        sections = plugins.sections()
        raw = config.read(cluster.template)
        # Not ``without_foreign``: who asks what is broken needs no warning of it.
        foreign = config.foreign_sections(raw, sections)
        known = {key: value for key, value in raw.items() if key not in foreign}
        return dict(config.check(known, sections).backends)
    except OlcoreError:
        return {}


def rows(listed: Sequence[PluginStatus]) -> Iterator[tuple[str, str, str, str]]:
    """Make the table's rows, one for each backend and each error."""
    for each in listed:
        head = (each.plugin, f"{each.distribution} {each.version}")
        for backend in each.backends:
            usable = "yes" if backend.why_unusable is None else f"no: {backend.why_unusable}"
            yield (*head, f"{backend.kind} {backend.name}", usable)
        if each.error:
            yield (*head, "-", f"broken: {each.error}")
        elif not each.backends:
            yield (*head, "-", "-")


def _print_table(lines: Sequence[tuple[str, ...]]) -> None:
    table = Table(*_HEADER, box=None, header_style="bold")
    for line in lines:
        style = (
            "red" if line[3].startswith("broken") else "yellow" if line[3].startswith("no") else ""
        )
        table.add_row(*line, style=style)
    Console(markup=False, highlight=False).print(table)


def _print_plain(lines: Sequence[tuple[str, ...]]) -> None:
    every = [_HEADER, *lines]
    widths = [max(len(line[column]) for line in every) for column in range(3)]
    for line in every:
        start = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False))
        print(f"{start}  {line[3]}".rstrip())
