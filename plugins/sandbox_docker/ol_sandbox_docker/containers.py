"""Writes down what a sandbox's container is made of; plain values, tested without an engine."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import olcore.guest
from olcore.interfaces import Limits, Network, WorkerContext

if TYPE_CHECKING:
    from ol_sandbox_docker.settings import DockerSettings

_BOOT = """
import os, sys
sys.path.insert(0, "/opt/olcore")
from olguest.server import main
if os.path.exists("/opt/olcore/go"):
    with open("/opt/olcore/go", "rb", 0) as go:
        go.read(1)
for name, fd in (("stdout", 1), ("stderr", 2)):
    file = os.open("/host/" + name, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
    os.dup2(file, fd)
    os.close(file)
main()
"""
_MIB = 1 << 20
_FIRST_UID = 1 << 30
_UIDS = (1 << 31) - 1 - _FIRST_UID  # the engine takes numbers up to 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """The folders of this machine that a sandbox sees."""

    code: Path
    scratch: Path
    packages: Path | None
    go: Path | None = None
    """The pipe that a container waits at which is started ahead; its code and scratch are mounted later."""


def tag(context: WorkerContext) -> str:
    """Eight hexadecimal digits that stand for this worker in the names of containers, networks and bridges."""
    identity = f"{context.cluster_name}\0{context.worker_name}"
    return f"{crc32(identity.encode()):08x}"


def labels(context: WorkerContext) -> dict[str, str]:
    """What every container and network of this worker carries."""
    return {
        "ol.cluster": context.cluster_name,
        "ol.worker": context.worker_name,
        "ol.type": "sandbox",
    }


def network_name(context: WorkerContext) -> str:
    """The network of this worker, and the bridge interface below it; an interface's name has at most 15 bytes."""
    return f"ol{tag(context)}"


def new_uid() -> int:
    """Choose the uid of one container.

    The kernel counts inotify instances, pipe pages and keys by uid, whatever the container, so that two with the same uid
    could starve each other. The range lies above those of /etc/subuid and systemd-nspawn, and is so large that a random
    number needs no book-keeping.
    """
    return _FIRST_UID + secrets.randbelow(_UIDS)


def config(
    context: WorkerContext,
    settings: DockerSettings,
    folders: Folders,
    limits: Limits,
    network: Network,
) -> dict[str, Any]:
    """Describe a container that runs the guest, as the engine's own JSON."""
    user = new_uid()
    return {
        "Image": settings.image,
        "Entrypoint": [settings.python, "-I", "-S", "-B", "-c", _BOOT],
        "Cmd": [],
        "User": f"{user}:{user}",
        "WorkingDir": "/",
        "Hostname": "sandbox",
        "Labels": labels(context),
        # The guest is process 1, for which SIGTERM does nothing: an engine that stops would wait ten seconds for it.
        "StopSignal": "SIGKILL",
        "HostConfig": {
            "Mounts": _mounts(folders),
            "NetworkMode": network_name(context) if network is Network.NAT else network.value,
            "Runtime": settings.runtime,
            "LogConfig": {"Type": "none", "Config": {}},
            **_isolation(),
            **_bounds(limits),
        },
    }


def probe_config(settings: DockerSettings) -> dict[str, Any]:
    """Describe a container that prints what the guest says first."""
    code = (
        "import json, sys; sys.path.insert(0, '/opt/olcore'); from olguest.server import hello;"
        " print(json.dumps(hello()))"
    )
    return {
        "Image": settings.image,
        "Entrypoint": [settings.python, "-I", "-S", "-B", "-c", code],
        "Cmd": [],
        "HostConfig": {
            "Mounts": [_bind(_guest(), "/opt/olcore/olguest")],
            "NetworkMode": "none",
            "Runtime": settings.runtime,
            "LogConfig": {"Type": "json-file", "Config": {}},
            **_isolation(),
        },
    }


def _guest() -> Path:
    return Path(olcore.guest.__file__).parent


def _mounts(folders: Folders) -> list[dict[str, Any]]:
    later = folders.go is not None
    mounts = [
        _bind(_guest(), "/opt/olcore/olguest"),
        _bind(folders.code, "/handler", later=later),
        _bind(folders.scratch, "/host", read_only=False, later=later),
    ]
    if folders.packages is not None:
        mounts.append(_bind(folders.packages, "/packages"))
    if folders.go is not None:
        mounts.append(_bind(folders.go, "/opt/olcore/go"))
    return mounts


def _bind(
    source: Path, target: str, *, read_only: bool = True, later: bool = False
) -> dict[str, Any]:
    """Describe a bind mount; *later* lets what is mounted on *source* afterwards show inside."""
    return {
        "Type": "bind",
        "Source": str(source),
        "Target": target,
        "ReadOnly": read_only,
        "BindOptions": {"Propagation": "rslave" if later else "rprivate"},
    }


def _isolation() -> dict[str, Any]:
    return {
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "IpcMode": "private",
        "Ulimits": [
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "nofile", "Soft": 1024, "Hard": 4096},
        ],
    }


def _bounds(limits: Limits) -> dict[str, Any]:
    return {
        "Memory": limits.memory_mb * _MIB,
        # The same number: memory and swap together, so no swap.
        "MemorySwap": limits.memory_mb * _MIB,
        "NanoCpus": limits.cpu_percent * 10_000_000,
        "PidsLimit": limits.max_processes,
        "ShmSize": limits.tmp_mb * _MIB,
        "Tmpfs": {"/tmp": f"rw,nosuid,nodev,{tmpfs_options(limits.tmp_mb)}"},  # noqa: S108 - inside
    }


def tmpfs_options(size_mb: int) -> str:
    """Bound a tmpfs: empty files cost no blocks, but kernel memory, so their number is bounded too."""
    return f"size={size_mb}m,nr_inodes={max(1024, size_mb * 64)},mode=1777"
