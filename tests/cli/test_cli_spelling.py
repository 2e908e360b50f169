"""How a cluster can be named, and how errors are said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli, Distributions, in_a_process


@pytest.mark.parametrize(
    "spelling", [["--cluster", "it"], ["--cluster=it"], ["-cluster", "it"], ["-cluster=it"]]
)
def test_openlambdas_single_dash_is_understood(
    cli: Cli, tmp_path: Path, spelling: list[str]
) -> None:
    assert cli("new", *spelling, cluster=False).code == 0
    assert (tmp_path / "it" / "config" / "template.json").is_file()


def test_other_options_may_have_one_dash_too(cli: Cli) -> None:
    assert "99999 is not in the range" in cli("workers", "-port=99999").err
    assert cli("-version", cluster=False).out.startswith("olcore, version ")


def test_a_command_below_a_command_is_spelled_so_too(cli: Cli, tmp_path: Path) -> None:
    said = cli("packages", "prune", f"-cluster={tmp_path}/none", cluster=False)
    assert f"'{tmp_path}/none' is no cluster" in said.err


def test_a_value_that_looks_like_an_option_is_no_option(made: Cli) -> None:
    assert "unknown key '-cluster'" in made("setconf", "--", "-cluster=x").err


def test_the_cluster_comes_from_the_environment_then_from_a_default(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("new", cluster=False).code == 0
    assert (tmp_path / "my-cluster").is_dir()
    monkeypatch.setenv("OLCORE_CLUSTER", "other")
    assert cli("new", cluster=False).code == 0
    assert (tmp_path / "other").is_dir()
    assert cli("new", "--cluster=third", cluster=False).code == 0
    assert (tmp_path / "third").is_dir()


def test_an_unknown_command_or_option_is_a_matter_of_usage(cli: Cli) -> None:
    said = cli("nwe", cluster=False)
    assert said.code == 2
    assert "No such command 'nwe'" in said.err
    assert "Did you mean '--cluster'?" in cli("new", "--clutser=x", cluster=False).err


def test_without_a_command_the_commands_are_listed(cli: Cli) -> None:
    said = in_a_process()
    assert said.code == 2
    assert said.err.startswith("Usage: olcore")
    assert "worker-exec" in said.err


def test_a_bug_keeps_its_traceback(cli: Cli, distributions: Distributions) -> None:
    distributions.install(
        "ol-bug",
        "import click\nfrom olcore import hookimpl\n"
        "@hookimpl\ndef ol_commands(cli):\n"
        "    cli.add_command(click.Command('bug', callback=lambda: 1 / 0))\n",
    )
    said = in_a_process("bug")
    assert said.code == 1
    assert "Traceback" in said.err
    assert "ZeroDivisionError" in said.err
