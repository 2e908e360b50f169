"""The command ``olcore image build``."""

from __future__ import annotations

import json
import secrets
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ol_sandbox_docker.settings import DockerSettings
from olcore.errors import ClusterError, ConfigError, SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ol_sandbox_docker.engine import Engine
    from ol_sandbox_docker.image import Progress as Report


@click.group()
def image() -> None:
    """Make the image that Docker sandboxes start from."""


@image.command()
@click.option(
    "--cluster",
    metavar="FOLDER",
    envvar="OLCORE_CLUSTER",
    default="my-cluster",
    type=click.Path(path_type=Path, file_okay=False),
    help="The cluster whose base and settings to use.  [default: $OLCORE_CLUSTER, then ./my-cluster]",
)
@click.option(
    "--pull",
    metavar="IMAGE",
    help="Pull this image instead, and give it the name that the cluster's docker.image says.",
)
def build(cluster: Path, pull: str | None) -> None:
    """Make docker.image from the cluster's base, or from this machine's own Python when the base is empty."""
    # Imported here, because this module is loaded for every command, and Docker's client takes longer than most of them.
    from ol_sandbox_docker.engine import Engine
    from ol_sandbox_docker.image import import_folder, import_host, size_of
    from ol_sandbox_docker.probe import probe
    from ol_sandbox_docker.usable import why_runtime_unusable

    base, settings = read(cluster)
    with closing(Engine(settings.base_url, settings.timeout_s)) as engine:
        # Before anything is packed for it.
        if (reason := why_runtime_unusable(settings.runtime, engine.info())) is not None:
            raise SandboxError(reason)
        if pull is not None:
            _pull(engine, pull, settings.image)
        elif base.is_dir() and any(base.iterdir()):
            with _progress(f"importing {base}", size_of(base)) as report:
                import_folder(engine, base, settings.image, report)
        else:
            with _progress("importing this machine's Python", None) as report:
                import_host(engine, settings.image, report)
        # A name of its own, or one that was killed here would be in the way of the next.
        name = f"ol-image-build-{secrets.token_hex(4)}"
        info = probe(engine, settings, name, {"ol.type": "probe"})
    click.echo(f"Image: {settings.image}, with Python {info.python} ({info.machine}, {info.libc})")


def read(cluster: Path) -> tuple[Path, DockerSettings]:
    """Read a cluster's base folder and its Docker settings.

    Raises:
        ClusterError: There is no such cluster.
        ConfigError: Its settings are not what they should be.
    """
    template = cluster.absolute() / "config" / "template.json"
    try:
        raw: dict[str, Any] = json.loads(template.read_text())
        settings = msgspec.convert(raw.get("docker", {}), DockerSettings)
    except OSError as error:
        raise ClusterError(
            f"{str(cluster)!r} is no cluster: cannot read {str(template)!r}: {error.strerror}",
            hint=f"olcore new --cluster {cluster}",
        ) from error
    except (ValueError, msgspec.ValidationError) as error:
        raise ConfigError(f"{template}: {error}") from error
    return cluster.absolute() / raw.get("base_dir", "base"), settings


def _pull(engine: Engine, source: str, name: str) -> None:
    with _progress(f"pulling {source}", None) as report:
        done: dict[str, int] = {}
        for said in engine.pull(source):
            current = (said.get("progressDetail") or {}).get("current")
            if current is not None:
                layer = said.get("id", "")
                report(max(0, current - done.get(layer, 0)))
                done[layer] = current
    if engine.image(source) is None:
        raise SandboxError(f"{source!r} was pulled, and the engine does not have it")
    engine.tag(source, name)


@contextmanager
def _progress(what: str, total: int | None) -> Iterator[Report]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
