"""Registers this plugin's backends with olcore."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ol_sandbox_docker.settings import DockerSettings
from olcore import hookimpl
from olcore.interfaces import (
    BaseArchive,
    BaseSource,
    SandboxBackend,
    SandboxPool,
    WorkerContext,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    import click


def _make(context: WorkerContext, settings: DockerSettings) -> SandboxPool:
    # Imported here and below, because a worker that uses another backend must not pay for Docker's client.
    from ol_sandbox_docker.pool import DockerPool

    return DockerPool(context, settings)


def _why_unusable(settings: DockerSettings) -> str | None:
    try:
        from ol_sandbox_docker.usable import why_unusable
    except ModuleNotFoundError as error:
        return (
            f"Docker's client is not whole: {error}; pip install --force-reinstall docker requests"
        )

    return why_unusable(settings)


def _clean(context: WorkerContext, settings: DockerSettings) -> Sequence[str]:
    from ol_sandbox_docker.pool import clean

    return clean(context, settings)


@hookimpl
def ol_sandbox_backends() -> Sequence[SandboxBackend[Any]]:
    """Offer the sandbox ``docker``."""
    return [
        SandboxBackend(
            name="docker",
            summary="Docker containers, on any engine of this machine",
            settings=DockerSettings,
            make=_make,
            why_unusable=_why_unusable,
            clean=_clean,
        )
    ]


def _open(image: str) -> AbstractContextManager[BaseArchive]:
    from ol_sandbox_docker.dump import exported

    return exported(image)


@hookimpl
def ol_base_sources() -> Sequence[BaseSource]:
    """Offer ``docker:IMAGE``."""
    return [
        BaseSource(scheme="docker", summary="an image of this machine's Docker engine", open=_open)
    ]


@hookimpl
def ol_commands(cli: click.Group) -> None:
    """Add ``olcore image``."""
    from ol_sandbox_docker.commands import image

    cli.add_command(image)
