"""Says how the workers of a cluster are, and what runs in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from olcore import config
from olcore.cli import client, processes, registry_server
from olcore.cli.common import Worker, cluster_option, read_template, worker_names, worker_of
from olcore.cli.workers import quote
from olcore.cluster import Cluster, WorkerDir
from olcore.errors import ClusterError, OlcoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from olcore.plugins import Plugins


@click.command()
@cluster_option
@click.pass_context
def status(context: click.Context, cluster: Cluster) -> None:
    """Ask every worker whether it is ready, and list the live instances."""
    read_template(cluster)
    plugins: Plugins = context.obj
    names = [name for name in worker_names(cluster) if is_expected(cluster, name)]
    lost = print_registry(cluster)
    if not names:
        print(f"No workers run in {cluster.root}")
        if lost:
            raise lost
        return
    answering: list[Worker] = []
    print("Worker Pings:")
    for name in names:
        try:
            worker = worker_of(cluster, name, plugins)
            print(f"  {ping(cluster, worker)}")
            answering.append(worker)
        except OlcoreError as error:
            print(f"  {name} => {error}")
            print(_indented(log_tail(cluster, name)))
    print("\nCluster containers:")
    failed = len(answering) < len(names)
    for worker in answering:
        failed |= not list_instances(worker)
    if failed:
        raise ClusterError("at least one worker failed the status check")
    if lost:
        raise lost


def print_registry(cluster: Cluster) -> ClusterError | None:
    """Print how the cluster's registry server is, when there is one; returns the error when it is gone."""
    try:
        line, lost = registry_server.status_line(cluster), None
    except ClusterError as error:
        line, lost = str(error), error
    if line:
        print(f"Registry:\n  {line}\n")
    return lost


def is_expected(cluster: Cluster, name: str) -> bool:
    """Say whether the worker should run: it was started, and nobody has stopped it."""
    return cluster.worker_pid(name).exists() or WorkerDir(cluster.worker_dir(name)).process.exists()


def ping(cluster: Cluster, worker: Worker) -> str:
    """Ask one worker for its state.

    Raises:
        ClusterError: It does not answer, or not that it is ready.
    """
    core = worker.settings.core
    url = f"{config.url(core)}/status"
    process = processes.read(WorkerDir(cluster.worker_dir(worker.name)).process)
    if process is None or not processes.is_alive(process):
        # Another program may answer on that port by now.
        pid = process.pid if process else "unknown"
        raise ClusterError(f"{url}: its process ({pid}) is gone")
    try:
        answer = client.get(core, "/status")
    except ClusterError as error:
        raise ClusterError(f"{url}: {error}") from error
    body = answer.body.decode(errors="replace").strip()
    line = f"{url} => {body} [{answer.status} {answer.reason}]"
    if body != "ready":
        raise ClusterError(line)
    return line


def list_instances(worker: Worker) -> bool:
    """Print the live instances of one worker, and how the last ones died; says whether it could be asked."""
    try:
        told = client.get_json(worker.settings.core, "/instances")
    except ClusterError as error:
        print(f"  {worker.name}: {error}")
        return False
    for instance in told.get("instances", []):
        print(f"  {worker.name}/{describe(instance, worker.settings.core.sandbox)}")
    for death in told.get("deaths", []):
        print(f"  {worker.name}/{describe_death(death)}")
    if told.get("zygotes"):
        print(f"  {worker.name}: the import cache keeps {len(told['zygotes'])} zygotes")
    return True


def describe(instance: Mapping[str, Any], sandbox: str) -> str:
    """Say one instance in a line."""
    state = str(instance.get("state", "?"))
    if instance.get("idle_s"):  # 0 for one that is busy
        state += f" for {float(instance['idle_s']):.1f} s"
    parts = [state]
    if "served" in instance:
        parts.append(f"served {instance['served']}")
    if "memory_mb" in instance:
        parts.append(f"{instance['memory_mb']} MiB")
    if instance.get("version"):
        parts.append(f"version {str(instance['version'])[:12]}")
    return f"{instance.get('handler', '?')}/{instance.get('id', '?')} [{sandbox}] => {', '.join(parts)}"


def describe_death(death: Mapping[str, Any]) -> str:
    """Say in a line how an instance ended."""
    how = [str(death[key]) for key in ("reason", "message") if death.get(key)]
    return f"{death.get('handler', '?')}/{death.get('id', '?')} => gone: {', '.join(how) or '?'}"


def log_tail(cluster: Cluster, name: str) -> str:
    """Quote the end of a worker's log."""
    log = cluster.worker_log(name)
    try:
        return quote(log, log.read_text(errors="replace"))
    except OSError as error:
        return f"no log at {log}: {error.strerror}"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
