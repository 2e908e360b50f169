"""The network of one worker's sandboxes: a bridge whose members reach the outside, not each other and not this host.

Docker keeps members of a bridge apart when asked, and different bridges always. It lets them reach the host, though, over
each of its addresses; rules of our own in INPUT stop that, DNS excepted. Docker has disabled IPv6 inside.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from ol_sandbox_docker.containers import labels, network_name
from olcore.errors import SandboxError

if TYPE_CHECKING:
    from ol_sandbox_docker.engine import Engine
    from olcore.interfaces import WorkerContext

_OPTION = "com.docker.network.bridge"


def make(engine: Engine, context: WorkerContext) -> None:
    """Make the network of this worker; nothing is left when it fails.

    Raises:
        SandboxError: The engine refuses, or the host's rules cannot be set.
    """
    if shutil.which("iptables") is None:
        raise SandboxError(
            "the network 'nat' needs the program iptables, to keep sandboxes from this host",
            hint='apt install iptables, or {"network": "none"}',
        )
    name = network_name(context)
    # Closed before there is something to close: no sandbox ever sees the host.
    _close_host(name)
    try:
        engine.make_network(
            name,
            {f"{_OPTION}.name": name, f"{_OPTION}.enable_icc": "false"},
            labels(context),
        )
    except SandboxError:
        _open_host(name)
        raise


def remove(engine: Engine, context: WorkerContext) -> list[str]:
    """Remove the network and its rules, if there are some; one line for each thing removed."""
    name = network_name(context)
    removed = [f"removed the network {name}"] if engine.remove_network(name) else []
    return [*removed, *_open_host(name)]


def rules(bridge: str) -> list[list[str]]:
    """The rules in INPUT for what comes from *bridge*, first one first."""
    source = ["-i", bridge]
    dns = [["-p", protocol, "--dport", "53", "-j", "ACCEPT"] for protocol in ("udp", "tcp")]
    return [*([*source, *rule] for rule in dns), [*source, "-j", "DROP"]]


def _close_host(bridge: str) -> None:
    _open_host(bridge)
    for rule in reversed(rules(bridge)):
        done = _iptables("-I", "INPUT", *rule)
        if done.returncode != 0:
            _open_host(bridge)
            raise SandboxError(f"cannot keep sandboxes from this host: {done.stderr.strip()}")


def _open_host(bridge: str) -> list[str]:
    if shutil.which("iptables") is None:
        return []
    removed = []
    for rule in rules(bridge):
        while _iptables("-C", "INPUT", *rule).returncode == 0:
            _iptables("-D", "INPUT", *rule)
            removed.append(f"removed the rule INPUT {' '.join(rule)}")
    return removed


def _iptables(*arguments: str) -> subprocess.CompletedProcess[str]:
    # -w: another program, the engine itself for one, may hold the lock.
    return subprocess.run(
        ["iptables", "-w", *arguments], capture_output=True, text=True, check=False
    )
