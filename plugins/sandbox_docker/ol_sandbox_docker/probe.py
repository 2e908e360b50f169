"""Asks an image which Python it has, by starting the guest's own greeting in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec

from ol_sandbox_docker.containers import probe_config
from olcore.errors import SandboxError
from olcore.interfaces import GuestInfo

if TYPE_CHECKING:
    from ol_sandbox_docker.engine import Engine
    from ol_sandbox_docker.settings import DockerSettings

_OLDEST = (3, 9)


def probe(engine: Engine, settings: DockerSettings, name: str, labels: dict[str, str]) -> GuestInfo:
    """Start a container, read what it says, and remove it.

    Args:
        engine: Where the image is.
        settings: Which image, and which interpreter in it.
        name: For the container.
        labels: For the container, so that it is found when this process dies meanwhile.

    Raises:
        SandboxError: The image has no interpreter that can run the guest; says what it lacks.
    """
    container = engine.create(name, probe_config(settings) | {"Labels": labels})
    try:
        engine.start(container)
        code = engine.wait(container)
        said = engine.output(container)
    except SandboxError as error:
        raise _unfit(settings, error.message) from error
    finally:
        engine.remove(container)
    if code != 0:
        lines = said.decode(errors="replace").strip().splitlines() or [f"exit code {code}"]
        raise _unfit(settings, lines[-1])
    info = msgspec.convert(json.loads(said), GuestInfo)
    if tuple(int(part) for part in info.python.split(".")[:2]) < _OLDEST:
        raise _unfit(settings, f"it is Python {info.python}")
    return info


def _unfit(settings: DockerSettings, reason: str) -> SandboxError:
    return SandboxError(
        f"{settings.python!r} of the image {settings.image!r} cannot run the guest: {reason}",
        hint="it takes a python3 >= 3.9 with ctypes, json and socket; see docker.image and docker.python",
    )
