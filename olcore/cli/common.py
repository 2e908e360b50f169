"""What several commands share: the ``--cluster`` option, reading a cluster, one worker's settings."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from olcore import config
from olcore.cluster import Cluster
from olcore.errors import ClusterError

if TYPE_CHECKING:
    from olcore.plugins import Plugins

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_CLUSTER = "my-cluster"


def _cluster(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Cluster:
    chosen = value or config.cluster_from_environment() or DEFAULT_CLUSTER
    return Cluster(Path(os.path.abspath(chosen)))  # noqa: PTH100 - Path.absolute keeps "..", resolve follows links


def cluster_option(command: Command) -> Command:
    """Give *command* the option ``--cluster``, as an argument ``cluster`` that is a Cluster."""
    return click.option(
        "--cluster",
        metavar="FOLDER",
        callback=_cluster,
        help=f"The cluster's folder.  [default: $OLCORE_CLUSTER, then ./{DEFAULT_CLUSTER}]",
    )(command)


def shown(cluster: Cluster) -> str:
    """Say a cluster's path as short as it can be typed here."""
    return (
        os.path.relpath(cluster.root)
        if cluster.root.is_relative_to(Path.cwd())
        else str(cluster.root)
    )


def read_template(cluster: Cluster) -> dict[str, Any]:
    """Read template.json.

    Raises:
        ClusterError: There is no such cluster.
        ConfigError: It cannot be read.
    """
    if not cluster.template.is_file():
        raise ClusterError(
            f"{str(cluster.root)!r} is no cluster: it has no config/template.json",
            hint=f"olcore new --cluster {shown(cluster)}",
        )
    return config.read(cluster.template)


def without_foreign(raw: Mapping[str, Any], where: Path, plugins: Plugins) -> dict[str, Any]:
    """Leave out what belongs to a plugin that is gone or broken, with a warning.

    Such a plugin must break no command; its section stands in every template since ``new``.
    """
    foreign = config.foreign_sections(raw, plugins.sections())
    for key in foreign:
        click.echo(
            f"olcore: warning: {where}: {key!r} is ignored: no plugin that works has that name",
            err=True,
        )
    return {key: value for key, value in raw.items() if key not in foreign}


@contextmanager
def locked(cluster: Cluster) -> Iterator[None]:
    """Keep other commands from starting or stopping workers of *cluster* meanwhile.

    Raises:
        ClusterError: Another command does so now.
    """
    # Never inherited: a worker that held it would lock out the command that stops it.
    fd = os.open(cluster.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ClusterError(
                f"another command starts or stops workers of {str(cluster.root)!r}",
                hint="wait until it has ended",
            ) from error
        yield
    finally:
        os.close(fd)


def worker_names(cluster: Cluster) -> list[str]:
    """List every worker that ever left a trace in *cluster*, in order of its number."""
    names = {path.stem for path in cluster.logs.glob("worker-*.pid")}
    names |= {path.stem for path in cluster.config.glob("worker-*.json")}
    names |= {path.name for path in cluster.workers.glob("*") if path.is_dir()}
    return sorted(names, key=lambda name: (len(name), name))


def worker_raw(
    cluster: Cluster, template: Mapping[str, Any], name: str, port: int
) -> dict[str, Any]:
    """Make one worker's configuration out of the template: every path absolute, counted from the cluster's folder."""
    core = config.Config()

    def absolute(key: str) -> str:
        return str(os.path.normpath(cluster.root / (template.get(key) or getattr(core, key))))

    wheels = template.get("package_find_links", "")
    own = {
        "cluster_name": template.get("cluster_name") or str(cluster.root),
        "worker_port": port,
        "worker_dir": str(cluster.worker_dir(name)),
        **{key: absolute(key) for key in ("registry_dir", "packages_dir", "base_dir")},
    }
    if wheels and "://" not in wheels:
        own["package_find_links"] = absolute("package_find_links")
    return {**template, **own}


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker of a cluster: its name, and how it is configured."""

    name: str
    settings: config.Settings


def worker_of(cluster: Cluster, name: str, plugins: Plugins) -> Worker:
    """Read how the worker *name* was configured when it started.

    Raises:
        ConfigError: Its file, or without one the template, is damaged.
        ClusterError: There is no such cluster.
    """
    path = cluster.worker_config(name)
    if path.is_file():
        raw = config.read(path)
    else:
        template = read_template(cluster)
        path = cluster.template
        raw = worker_raw(cluster, template, name, 0)
    raw = without_foreign(raw, path, plugins)
    settings = config.check(raw, plugins.sections(), str(path))
    return Worker(name, config.Settings(config.resolve(settings.core, path), settings.backends))
