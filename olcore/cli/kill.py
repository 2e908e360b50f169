"""Stops every worker and sandbox of a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from olcore.cli import leftovers, processes, registry_server
from olcore.cli.common import cluster_option, locked, read_template, worker_names, worker_of
from olcore.cluster import Cluster, WorkerDir
from olcore.config import Config
from olcore.errors import ClusterError, OlcoreError

if TYPE_CHECKING:
    from olcore.plugins import Plugins

_MARGIN_S = 5.0


@click.command()
@cluster_option
@click.pass_obj
def kill(plugins: Plugins, cluster: Cluster) -> None:
    """Drain and stop the workers, and clear what crashed ones left behind."""
    read_template(cluster)
    with locked(cluster):
        names = worker_names(cluster)
        known = {
            name: processes.read(WorkerDir(cluster.worker_dir(name)).process) for name in names
        }
        workers = {name: process for name, process in known.items() if process}
        for name in names:
            report_foreign(cluster, name, known[name])
        running = {name: each for name, each in workers.items() if processes.is_alive(each)}
        timeout_s = max((drain_s(cluster, name, plugins) for name in running), default=0.0)
        stuck = processes.stop_worker_processes(
            list(workers.values()),
            timeout_s + _MARGIN_S,
            lambda process: print(f"Process {process.pid} did not stop in time; killed"),
        )
        if stuck:
            pids = ", ".join(str(process.pid) for process in stuck)
            raise ClusterError(
                f"processes {pids} do not end, even by SIGKILL", hint="see dmesg; then try again"
            )
        for name, process in running.items():
            print(f"Stopped {name} (pid {process.pid})")
        for name in names:
            for line in leftovers.clean(cluster, name, plugins):
                print(f"Cleaned up {line}")
        if not running:
            print(f"No workers run in {cluster.root}")
        # Last: a worker that drains may still need its registry.
        if stopped := registry_server.stop(cluster):
            print(stopped)


def drain_s(cluster: Cluster, name: str, plugins: Plugins) -> float:
    """Say how long the worker may drain."""
    try:
        return worker_of(cluster, name, plugins).settings.core.drain_timeout_s
    except OlcoreError:
        # Its file is damaged; it must be possible to stop it all the same.
        return Config().drain_timeout_s


def report_foreign(cluster: Cluster, name: str, process: processes.Process | None) -> None:
    """Say when the number in the pid file belongs to a program that is not the worker; it is left alone."""
    try:
        pid = int(cluster.worker_pid(name).read_text())
    except (OSError, ValueError):
        return
    if processes.identify(pid) and not (
        process and process.pid == pid and processes.is_alive(process)
    ):
        print(f"{name} is gone; process {pid} is another program now, and was left alone")
