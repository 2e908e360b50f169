"""olcore plugins, and what a broken plugin breaks: nothing."""

from __future__ import annotations

import json
from typing import Any

from tests.cli.conftest import Cli, Distributions

UNUSABLE = """
import msgspec
from olcore import hookimpl
from olcore.interfaces import SandboxBackend


class Settings(msgspec.Struct, frozen=True):
    kernel: str = ""


@hookimpl
def ol_sandbox_backends():
    return [
        SandboxBackend(
            name="vm", summary="s", settings=Settings, make=print,
            why_unusable=lambda settings: None if settings.kernel else "vm.kernel is not set",
        )
    ]
"""
COMMANDS = """
import click
from olcore import hookimpl


@hookimpl
def ol_commands(cli):
    cli.add_command(click.Command("greet", callback=lambda: print("hello")))
    {}
"""


def listed(cli: Cli) -> dict[str, dict[str, Any]]:
    return {each["plugin"]: each for each in json.loads(cli.ok("plugins", "--json"))}


def test_every_plugin_is_listed_with_distribution_version_and_backends(cli: Cli) -> None:
    found = listed(cli)
    assert found["ol-sandbox-pretended"] == {
        "plugin": "ol-sandbox-pretended",
        "distribution": "ol-sandbox-pretended",
        "version": "1.0",
        "backends": [
            {
                "kind": "sandbox",
                "name": "pretended",
                "summary": "no isolation",
                "why_unusable": None,
            }
        ],
        "error": None,
    }
    assert [each["name"] for each in found["builtin"]["backends"]] == ["lifo"]
    lines = [line.split() for line in cli.ok("plugins").splitlines()]
    assert lines[0] == ["PLUGIN", "DISTRIBUTION", "BACKEND", "USABLE", "HERE"]
    assert [*["ol-sandbox-pretended"] * 2, "1.0", "sandbox", "pretended", "yes"] in lines


def test_why_a_backend_cannot_run_is_asked_with_the_clusters_settings(
    cli: Cli, distributions: Distributions
) -> None:
    distributions.install("ol-sandbox-vm", UNUSABLE)
    assert listed(cli)["ol-sandbox-vm"]["backends"][0]["why_unusable"] == "vm.kernel is not set"
    cli.ok("new")
    assert "sandbox vm" in cli.ok("plugins")
    assert "no: vm.kernel is not set" in cli.ok("plugins")
    cli.ok("setconf", "vm.kernel=k", "sandbox=pretended")
    assert listed(cli)["ol-sandbox-vm"]["backends"][0]["why_unusable"] is None


def test_a_backend_that_cannot_run_is_refused_when_workers_start(
    cli: Cli, distributions: Distributions
) -> None:
    distributions.install("ol-sandbox-vm", UNUSABLE)
    cli.ok("new")
    cli.ok("setconf", "sandbox=vm")
    said = cli("workers")
    assert said.code == 1
    assert "the sandbox 'vm' cannot run here: vm.kernel is not set" in said.err


def test_a_plugin_that_cannot_be_imported_is_listed_and_breaks_no_command(
    made: Cli, distributions: Distributions
) -> None:
    distributions.install("ol-sandbox-vm", UNUSABLE)
    made.ok("setconf", "vm.kernel=k")
    # Another name, for this process has imported the first.
    distributions.install("ol-sandbox-vm", UNUSABLE)
    info = distributions.folder / "ol_sandbox_vm-1.0.dist-info" / "entry_points.txt"
    info.write_text("[olcore]\nol-sandbox-vm = vm_that_breaks\n")
    (distributions.folder / "vm_that_breaks.py").write_text("import no_such_library\n")
    broken = listed(made)["ol-sandbox-vm"]
    assert broken["error"] == "ModuleNotFoundError: No module named 'no_such_library'"
    assert broken["backends"] == []
    assert "broken: ModuleNotFoundError" in made.ok("plugins")
    made.ok("setconf", "max_queue=3")
    made.ok("workers")
    made.ok("status")
    made.ok("kill")
    said = made("setconf", "sandbox=vm")
    assert "hint: pip install ol-sandbox-vm; or see in 'olcore plugins' what is wrong" in said.err


def test_a_plugin_that_exits_when_imported_ends_nothing(
    cli: Cli, distributions: Distributions
) -> None:
    distributions.install("ol-exits", "import sys\nsys.exit(3)\n")
    assert listed(cli)["ol-exits"]["error"] == "SystemExit: 3"


def test_a_plugin_adds_commands(cli: Cli, distributions: Distributions) -> None:
    distributions.install("ol-greet", COMMANDS.format("pass"))
    assert cli("greet", cluster=False).out == "hello\n"


def test_commands_that_fail_to_be_added_break_no_other(
    cli: Cli, distributions: Distributions
) -> None:
    distributions.install("ol-greet-fails", COMMANDS.format("1 / 0"))
    assert (
        listed(cli)["ol-greet-fails"]["error"] == "ol_commands: ZeroDivisionError: division by zero"
    )
    assert "No such command 'greet'" in cli("greet", cluster=False).err


def test_a_plugin_cannot_take_a_commands_name(cli: Cli, distributions: Distributions) -> None:
    distributions.install(
        "ol-greet-takes", COMMANDS.format('cli.add_command(click.Command("new"))')
    )
    assert "the command 'new' is taken" in listed(cli)["ol-greet-takes"]["error"]
    cli.ok("new")
