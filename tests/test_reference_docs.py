"""The reference pages say what the code does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from olcore.cli.main import make_group
from olcore.config import SUCCESSORS, Config
from olcore.plugins import Plugins
from tools import reference_docs

PAGES = Path(__file__).parents[1] / "docs" / "reference"
STALE = "is stale: run .venv/bin/python -m tools.reference_docs"


def test_the_page_of_the_configuration_is_the_schemas() -> None:
    assert (PAGES / "configuration.md").read_text() == reference_docs.configuration(), STALE


def test_the_page_of_the_hooks_is_that_of_hookspecs() -> None:
    assert (PAGES / "hooks.md").read_text() == reference_docs.hooks(), STALE


def test_every_setting_says_what_it_is() -> None:
    schemas: dict[str, type[msgspec.Struct]] = {"core": Config, **Plugins.load().sections()}
    for name, schema in schemas.items():
        missing = set(schema.__struct_fields__) - set(reference_docs.docstrings(schema))
        assert not missing, f"{name}: no docstring below {', '.join(sorted(missing))}"


def test_the_successor_of_a_key_of_openlambda_exists() -> None:
    sections = Plugins.load().sections()
    for successor in SUCCESSORS.values():
        if successor.startswith("'"):
            section, _, key = successor[1:].partition("'")[0].rpartition(".")
            schema = sections[section] if section else Config
            assert key in schema.__struct_fields__, successor


def commands(
    group: click.Group, path: tuple[str, ...] = ("olcore",)
) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield " ".join((*path, name)), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = dict(commands(make_group(Plugins.load())))


@pytest.mark.parametrize("command", ALL)
def test_every_command_and_every_option_is_on_the_page_of_commands(command: str) -> None:
    page = (PAGES / "commands.md").read_text()
    assert f"`{command}" in page
    for parameter in ALL[command].params:
        if isinstance(parameter, click.Option):
            long = next(each for each in parameter.opts if each.startswith("--"))
            assert long in page, f"{command} {long}"
