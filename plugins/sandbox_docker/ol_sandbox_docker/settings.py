"""The keys of template.json below ``docker``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class DockerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator can choose about Docker."""

    base_url: str = "unix:///var/run/docker.sock"
    """The engine's Unix socket; a remote engine cannot map this machine's folders."""
    image: Annotated[str, Meta(min_length=1)] = "olcore"
    """The image that sandboxes start from; ``olcore image build`` makes it."""
    python: Annotated[str, Meta(min_length=1)] = "python3"
    """The interpreter inside the image: a name on its PATH, or a path."""
    runtime: str = ""
    """An OCI runtime that the engine knows, such as ``runsc``; empty means the engine's default."""
    warm_pool: Annotated[int, Meta(ge=0)] = 0
    """Containers that are started ahead, with the cluster's limits and network; each takes some 7 MiB."""
    timeout_s: Annotated[float, Meta(gt=0)] = 60.0
    """No call of the engine may take longer."""
