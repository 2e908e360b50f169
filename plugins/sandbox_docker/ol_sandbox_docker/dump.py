"""Reads the root file system of an image, for ``olcore new --base docker:IMAGE``."""

from __future__ import annotations

import os
import secrets
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from ol_sandbox_docker.engine import SCHEME, Engine
from ol_sandbox_docker.settings import DockerSettings
from ol_sandbox_docker.usable import why_no_engine
from olcore.errors import SandboxError, SandboxUnavailableError
from olcore.interfaces import BaseArchive

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def exported(image: str) -> Iterator[BaseArchive]:
    """Export a container of *image* that never runs; it is gone afterwards.

    Raises:
        SandboxError: The engine does not answer, or has no such image.
    """
    defaults = DockerSettings()
    # A cluster that is being made has no settings yet; Docker's own programs look here too.
    url = os.environ.get("DOCKER_HOST") or defaults.base_url
    if not url.startswith(SCHEME):
        raise SandboxError(
            f"DOCKER_HOST is {url!r}, and no Unix socket",
            hint="docker create IMAGE none; docker export CONTAINER >rootfs.tar; olcore new --base rootfs.tar",
        )
    if (reason := why_no_engine(url)) is not None:
        raise SandboxUnavailableError(
            reason, hint="the variable DOCKER_HOST names another engine, as unix:///path"
        )
    with closing(Engine(url, defaults.timeout_s)) as engine:
        found = engine.image(image)
        if found is None:
            raise SandboxError(
                f"the Docker engine at {url} has no image {image!r}", hint=f"docker pull {image}"
            )
        # A command, because an image without one is refused; a name, so that a leftover says what it was.
        container = engine.create(
            f"ol-base-{secrets.token_hex(4)}",
            {
                "Image": found["Id"],
                "Cmd": ["none"],
                "HostConfig": {"NetworkMode": "none"},
                "Labels": {"ol.type": "base"},
            },
        )
        try:
            yield BaseArchive(chunks=engine.export(container), size_bytes=found.get("Size"))
        finally:
            engine.remove(container)
