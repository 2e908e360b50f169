"""The olcore program: its commands, its spelling of options, and how it says errors."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import click

from olcore import __version__
from olcore.cli.kill import kill
from olcore.cli.new import new
from olcore.cli.packages import install, packages
from olcore.cli.plugins import list_plugins
from olcore.cli.registry import download, handlers, remove, upload
from olcore.cli.registry_server import registry
from olcore.cli.setconf import setconf
from olcore.cli.status import status
from olcore.cli.worker_exec import worker_exec
from olcore.cli.workers import workers
from olcore.errors import OlcoreError, PluginError
from olcore.plugins import Implementation, Plugins

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_COMMANDS = (
    new,
    setconf,
    workers,
    worker_exec,
    status,
    kill,
    list_plugins,
    install,
    packages,
    registry,
    upload,
    handlers,
    remove,
    download,
)
_SINGLE_DASH = re.compile(r"-([a-z][a-z0-9-]+)(=.*)?", re.DOTALL)
_INTERRUPTED = 130


def main() -> None:
    """Run the program with the arguments of this process."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the program and return its exit code; a bug's traceback goes through."""
    plugins = Plugins.load()
    group = make_group(plugins)
    try:
        code = group.main(
            args=respell(arguments, group), prog_name="olcore", obj=plugins, standalone_mode=False
        )
    except OlcoreError as error:
        _say(error.message, error.hint)
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        _say(*_parts(error))
        return error.exit_code
    except click.Abort:
        _say("interrupted", None)
        return _INTERRUPTED
    return code if isinstance(code, int) else 0


def make_group(plugins: Plugins) -> click.Group:
    """Put olcore's own commands and those of plugins together."""
    group = click.Group(
        "olcore",
        help="Run Python functions in sandboxes that start in milliseconds.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    click.version_option(__version__, prog_name="olcore")(group)
    for command in _COMMANDS:
        group.add_command(command)
    for implementation in plugins.implementations("ol_commands"):
        try:
            _add_commands(group, implementation)
        except Exception as error:  # noqa: BLE001 - one plugin's fault breaks no command
            plugins.complain(implementation.plugin, f"ol_commands: {type(error).__name__}: {error}")
    return group


def _add_commands(group: click.Group, implementation: Implementation) -> None:
    # A group of its own, so that a plugin cannot replace a command, nor add half of its own before it fails.
    own = click.Group()
    implementation.call({"cli": own})
    taken = own.commands.keys() & group.commands.keys()
    if taken:
        raise PluginError(f"the command {min(taken)!r} is taken")
    for name, command in own.commands.items():
        group.add_command(command, name)


def respell(arguments: Sequence[str], group: click.Group) -> list[str]:
    """Turn OpenLambda's ``-cluster=X`` into ``--cluster=X`` for every option that a command has."""
    known = {"help", *_long_options(group)}
    result: list[str] = []
    for index, argument in enumerate(arguments):
        if argument == "--":
            return [*result, *arguments[index:]]
        found = _SINGLE_DASH.fullmatch(argument)
        result.append(f"-{argument}" if found and found[1] in known else argument)
    return result


def _long_options(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        for spelling in (*parameter.opts, *parameter.secondary_opts):
            if spelling.startswith("--"):
                yield spelling[2:]
    if isinstance(command, click.Group):
        for below in command.commands.values():
            yield from _long_options(below)


def _parts(error: click.ClickException) -> tuple[str, str | None]:
    message, _, hint = error.format_message().partition("\nhint: ")
    if not hint and isinstance(error, click.UsageError):
        hint = f"{error.ctx.command_path if error.ctx else 'olcore'} --help"
    return message.rstrip("."), hint or None


def _say(message: str, hint: str | None) -> None:
    click.echo(f"olcore: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)
