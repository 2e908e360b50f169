"""Runs one worker in the foreground."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from olcore import config
from olcore.cli import processes
from olcore.cluster import WorkerDir
from olcore.errors import ClusterError, ConfigError, PluginNotFoundError

if TYPE_CHECKING:
    from olcore.plugins import Plugins


@click.command("worker-exec")
@click.option(
    "-c",
    "--config",
    "file",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help='The worker\'s configuration; may say as little as {"worker_port": "8080"}.',
)
@click.pass_obj
def worker_exec(plugins: Plugins, file: Path) -> None:
    """Run one worker in the foreground; its log goes to the terminal, the first ctrl-C drains and stops it."""
    settings = load(file, plugins)
    plugins.require_usable(settings)
    claim(WorkerDir(Path(settings.core.worker_dir)))
    # Imported here, because no other command needs a server.
    from olcore import server

    server.run(file.stem, settings, plugins)


def load(file: Path, plugins: Plugins) -> config.Settings:
    """Read, check and resolve a worker's configuration.

    Raises:
        click.UsageError: It is missing or wrong; names the file and the field.
    """
    try:
        settings = config.check(config.read(file), plugins.sections(), str(file))
        plugins.chosen(settings.core)
    except (ConfigError, PluginNotFoundError) as error:
        where = "" if str(file) in error.message else f"{file}: "
        hint = f"\nhint: {error.hint}" if error.hint else ""
        raise click.UsageError(f"{where}{error.message}{hint}") from error
    return config.Settings(config.resolve(settings.core, file), settings.backends)


def claim(folder: WorkerDir) -> None:
    """Note that this process is the worker of *folder*, for ``status`` and ``kill``.

    Raises:
        ClusterError: Another living process is, or the folder cannot be made.
    """
    other = processes.read(folder.process)
    if other and other.pid != os.getpid() and processes.is_alive(other):
        raise ClusterError(
            f"process {other.pid} already runs on {str(folder.root)!r}",
            hint="stop it, or set worker_dir to another folder",
        )
    me = processes.identify(os.getpid())
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        if me:
            processes.write(folder.process, me)
    except OSError as error:
        raise ClusterError(
            f"cannot write to worker_dir {str(folder.root)!r}: {error.strerror}"
        ) from error
