"""Says why Docker cannot be used on this machine, with the way out."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from ol_sandbox_docker.engine import SCHEME, Engine
from olcore.errors import SandboxError

if TYPE_CHECKING:
    from ol_sandbox_docker.settings import DockerSettings

_QUICK_S = 5.0


def why_unusable(settings: DockerSettings) -> str | None:
    """Ask the engine for what sandboxes need; ``None`` when all is there."""
    reason = why_no_engine(settings.base_url)
    if reason is not None:
        return reason
    if os.geteuid() != 0:
        return "scratch folders are bounded by mounts: run the worker as root"
    engine = Engine(settings.base_url, _QUICK_S)
    try:
        info = engine.info()
        return why_runtime_unusable(settings.runtime, info, settings.warm_pool) or _why_no_image(
            engine, settings
        )
    except SandboxError as error:
        return str(error)
    finally:
        engine.close()


def why_no_engine(base_url: str) -> str | None:
    """Say why nobody answers at *base_url*; ``None`` when somebody listens there."""
    if not base_url.startswith(SCHEME):
        return (
            f"docker.base_url is {base_url!r}: the engine must map this machine's folders, so it must be "
            f"reached over a Unix socket ({SCHEME}/var/run/docker.sock)"
        )
    path = base_url.removeprefix(SCHEME)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_QUICK_S)
        try:
            probe.connect(path)
        except FileNotFoundError:
            said = "no such socket: install Docker and start it (systemctl start docker)"
        except ConnectionRefusedError:
            said = "nobody listens: start the engine (systemctl start docker)"
        except PermissionError:
            said = "permission denied: run as root, or join the group docker"
        except OSError as error:
            said = f"{error.strerror or error}: set docker.base_url to the engine's socket"
        else:
            return None
    return f"no Docker engine at {path}: {said}"


def why_runtime_unusable(runtime: str, info: dict[str, Any], warm_pool: int = 0) -> str | None:
    """Say why containers of that OCI runtime could not serve.

    Args:
        runtime: Its name as the engine knows it; empty for the engine's default.
        info: What the engine says of itself.
        warm_pool: How many containers are to be started ahead.
    """
    runtimes: dict[str, dict[str, Any]] = info.get("Runtimes") or {}
    name = runtime or str(info.get("DefaultRuntime", "runc"))
    if runtime and runtime not in runtimes:
        known = ", ".join(sorted(runtimes))
        return f"the Docker engine has no runtime {runtime!r}; it has: {known}"
    about = f"{name} {runtimes.get(name)}"
    if "kata" in about:
        return (
            f"the runtime {name!r} is a virtual machine, which shares no Unix socket with the worker: "
            "use runc or runsc"
        )
    if "runsc" in about and not _opens_sockets(runtimes.get(name) or {}):
        return (
            f"the runtime {name!r} keeps sandboxes from the worker's Unix socket: add "
            '"--host-uds=open" to its runtimeArgs in /etc/docker/daemon.json'
        )
    if "runsc" in about and warm_pool:
        return (
            f"the runtime {name!r} does not see folders that are mounted after a container's start: "
            "set docker.warm_pool to 0"
        )
    return None


def _opens_sockets(runtime: dict[str, Any]) -> bool:
    arguments = " ".join(runtime.get("runtimeArgs") or ()).replace("host-uds ", "host-uds=")
    return any(f"host-uds={value}" in arguments for value in ("open", "all"))


def _why_no_image(engine: Engine, settings: DockerSettings) -> str | None:
    if engine.image(settings.image) is not None:
        return None
    return (
        f"the Docker engine has no image {settings.image!r}: make it with 'olcore image build', "
        "or set docker.image to one that has python3 >= 3.9"
    )
