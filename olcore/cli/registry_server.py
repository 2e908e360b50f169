"""Starts a registry server for the cluster in the background, and knows it again."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from olcore import config
from olcore.cli import ports, processes
from olcore.cli.common import cluster_option, locked, read_template, shown, without_foreign
from olcore.cli.setconf import differences
from olcore.cli.workers import quote
from olcore.errors import ClusterError, PluginNotFoundError
from olcore.interfaces import RegistryBackend, RegistryServer, ServerContext
from olcore.plugins import Kind, Plugins

if TYPE_CHECKING:
    from olcore.cluster import Cluster

_MAX_PORT = 65535
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0


class _Running(msgspec.Struct, frozen=True, kw_only=True):
    """What is noted about a server that was started."""

    process: processes.Process
    url: str


@click.command()
@cluster_option
@click.option("-p", "--port", type=click.IntRange(0, _MAX_PORT), default=9000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--access-key", default="", envvar="OLCORE_ACCESS_KEY", help="Made up when missing.")
@click.option("--secret-key", default="", envvar="OLCORE_SECRET_KEY", help="Made up when missing.")
@click.pass_obj
def registry(
    plugins: Plugins,
    /,
    cluster: Cluster,
    port: int,
    host: str,
    access_key: str,
    secret_key: str,
) -> None:
    """Start a registry server in the background, and have workers that start later use it."""
    before = read_template(cluster)
    known = without_foreign(before, cluster.template, plugins)
    settings = config.check(known, plugins.sections(), str(cluster.template))
    backend = _serving(plugins, settings.core.registry)
    with locked(cluster):
        running = find(cluster)
        if running is not None:
            raise ClusterError(
                f"a registry server already runs at {running.url} (process {running.process.pid})",
                hint=f"olcore kill --cluster {shown(cluster)}",
            )
        cluster.registry_server.mkdir(mode=0o700, exist_ok=True)
        context = ServerContext(
            folder=cluster.registry_server,
            host=host,
            port=ports.require_free(host, port),
            access_key=access_key,
            secret_key=secret_key,
        )
        assert backend.serve is not None  # noqa: S101  # _serving chose it for that
        server = backend.serve(context, settings.backends[backend.name])
        patch = {"registry": backend.name, backend.name: dict(server.settings)}
        after = config.merge(before, patch)
        config.check({**known, **patch}, plugins.sections(), str(cluster.template))
        process = _start(cluster, server)
        if after != before:
            config.write(cluster.template, after)
    print(f"Started registry: pid {process.pid}, URL {server.url}, log at {cluster.registry_log}")
    for line in differences(before, after):
        print(f"  {line}")
    for name, value in server.generated.items():
        print(f"Made {name} (shown once): {value}")


def _serving(plugins: Plugins, chosen: str) -> RegistryBackend[Any]:
    for name in sorted(plugins.names(Kind.REGISTRY), key=lambda name: name != chosen):
        backend = plugins.registry(name)
        if backend.serve is not None:
            return backend
    raise PluginNotFoundError(
        "no installed registry can start a server", hint="pip install 'ol-registry-s3[server]'"
    )


def _start(cluster: Cluster, server: RegistryServer) -> processes.Process:
    with cluster.registry_log.open("ab") as output:
        offset = output.tell()
        child = subprocess.Popen(
            server.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cluster.registry_server,
            env={**os.environ, **server.environment},
            start_new_session=True,
        )
    try:
        _wait_until_ready(child, server, cluster, offset)
        process = _identified(child, cluster, offset)
        note = _Running(process=process, url=server.url)
        config.write(cluster.registry_process, msgspec.to_builtins(note))
        cluster.registry_pid.write_text(f"{child.pid}\n")
    except BaseException:
        child.kill()
        child.wait()
        raise
    return process


def _identified(child: subprocess.Popen[bytes], cluster: Cluster, offset: int) -> processes.Process:
    process = processes.identify(child.pid)
    if process is None:
        raise ClusterError(_ended(child, cluster, offset))
    return process


def _wait_until_ready(
    child: subprocess.Popen[bytes], server: RegistryServer, cluster: Cluster, offset: int
) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    fd = os.pidfd_open(child.pid)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        # A port says nothing until it answers, so it is asked again; the process's end is waited for meanwhile.
        while not server.is_ready():
            if poll.poll(50):
                raise ClusterError(_ended(child, cluster, offset))
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"the registry server did not answer within {_START_TIMEOUT_S:g} s; "
                    + _tail(cluster, offset)
                )
        if poll.poll(0):
            # Another program answers there.
            raise ClusterError(_ended(child, cluster, offset))
    finally:
        os.close(fd)


def _ended(child: subprocess.Popen[bytes], cluster: Cluster, offset: int) -> str:
    return f"the registry server ended (code {child.wait()}); {_tail(cluster, offset)}"


def _tail(cluster: Cluster, offset: int) -> str:
    with cluster.registry_log.open("rb") as file:
        file.seek(offset)
        return quote(cluster.registry_log, file.read().decode(errors="replace"))


def _noted(cluster: Cluster) -> _Running | None:
    try:
        return msgspec.json.decode(cluster.registry_process.read_bytes(), type=_Running)
    except (OSError, msgspec.MsgspecError):
        return None


def find(cluster: Cluster) -> _Running | None:
    """Say which registry server of the cluster runs, if any."""
    noted = _noted(cluster)
    return noted if noted is not None and processes.is_alive(noted.process) else None


def status_line(cluster: Cluster) -> str | None:
    """Say in a line how the registry server is; ``None`` when none was started.

    Raises:
        ClusterError: It was started, nobody has stopped it, and it is gone.
    """
    noted = _noted(cluster)
    if noted is None:
        return None
    if not processes.is_alive(noted.process):
        raise ClusterError(
            f"registry {noted.url} => its process ({noted.process.pid}) is gone",
            hint=f"olcore registry --cluster {shown(cluster)}; its log is {cluster.registry_log}",
        )
    return f"{noted.url} => running [pid {noted.process.pid}]"


def stop(cluster: Cluster) -> str | None:
    """Stop the registry server of the cluster, and say so in a line; ``None`` when none runs."""
    running = find(cluster)
    if running is not None:
        if processes.stop([running.process], signal.SIGTERM, _STOP_TIMEOUT_S):
            processes.kill_tree(running.process)
        # What it has started itself, such as workers of its own.
        processes.stop(processes.session_members(running.process), signal.SIGKILL, _STOP_TIMEOUT_S)
    for path in (cluster.registry_process, cluster.registry_pid):
        path.unlink(missing_ok=True)
    return f"Stopped registry (pid {running.process.pid})" if running else None
