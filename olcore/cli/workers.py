"""Starts workers in the background."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from olcore import config
from olcore.cli import client, leftovers, ports, processes
from olcore.cli.common import (
    Worker,
    cluster_option,
    locked,
    read_template,
    shown,
    without_foreign,
    worker_of,
    worker_raw,
)
from olcore.cluster import Cluster, WorkerDir
from olcore.errors import ClusterError

if TYPE_CHECKING:
    from olcore.plugins import Plugins

_MAX_PORT = 65535
_START_TIMEOUT_S = 120.0
_TAIL_LINES = 20


@dataclass(frozen=True, slots=True)
class Started:
    """A worker's process that has been started, and may not answer yet."""

    worker: Worker
    process: subprocess.Popen[bytes]
    log: Path
    log_offset: int
    """Where the log of this start begins."""


@click.command()
@cluster_option
@click.option("-n", "--num-workers", type=click.IntRange(1, 1000), default=1, show_default=True)
@click.option(
    "-p",
    "--port",
    type=click.IntRange(0, _MAX_PORT),
    help="The first worker's port, the next has the next; 0 takes free ones.  [default: worker_port]",
)
@click.pass_obj
def workers(plugins: Plugins, cluster: Cluster, num_workers: int, port: int | None) -> None:
    """Start workers in the background, and wait until they answer."""
    template = without_foreign(read_template(cluster), cluster.template, plugins)
    settings = config.check(template, plugins.sections(), str(cluster.template))
    plugins.require_usable(settings)
    first = settings.core.worker_port if port is None else port
    if first + num_workers - 1 > _MAX_PORT:
        raise ClusterError(
            f"{num_workers} workers from port {first} on need ports over {_MAX_PORT}"
        )
    names = [f"worker-{number}" for number in range(num_workers)]
    with locked(cluster), ExitStack() as undo:
        for name in names:
            require_stopped(cluster, name)
        host = settings.core.worker_host
        chosen = [ports.require_free(host, first and first + i) for i in range(num_workers)]
        started = []
        for name, free in zip(names, chosen, strict=True):
            for line in leftovers.clean(cluster, name, plugins):
                print(f"Cleaned up {line}")
            started.append(start(cluster, template, name, free, plugins))
            undo.callback(abandon, cluster, started[-1])
        for each in started:
            wait_until_ready(each)
            print(
                f"Started worker: pid {each.process.pid}, URL {config.url(each.worker.settings.core)}, "
                f"log at {each.log}"
            )
        undo.pop_all()


def require_stopped(cluster: Cluster, name: str) -> None:
    """Check that the worker *name* does not run.

    Raises:
        ClusterError: It does.
    """
    process = processes.read(WorkerDir(cluster.worker_dir(name)).process)
    if process and processes.is_alive(process):
        raise ClusterError(
            f"{name} already runs (process {process.pid})",
            hint=f"olcore kill --cluster {shown(cluster)}",
        )
    if process:
        # Its arbiter was killed alone; what is left of its session would keep the port and the sandboxes.
        processes.stop_worker_processes([process], 0.0, lambda _process: None)


def start(
    cluster: Cluster, template: dict[str, Any], name: str, port: int, plugins: Plugins
) -> Started:
    """Start one worker in a session of its own, so that it outlives the terminal."""
    folder = WorkerDir(cluster.worker_dir(name))
    folder.root.mkdir(exist_ok=True)
    file = cluster.worker_config(name)
    config.write(file, worker_raw(cluster, template, name, port))
    log = cluster.worker_log(name)
    with log.open("ab") as output:
        offset = output.tell()
        child = subprocess.Popen(
            # -P: a file in the cluster's folder must not be imported in place of a library.
            [sys.executable, "-P", "-m", "olcore", "worker-exec", "--config", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cluster.root,
            start_new_session=True,
        )
    cluster.worker_pid(name).write_text(f"{child.pid}\n")
    if identity := processes.identify(child.pid):
        processes.write(folder.process, identity)
    return Started(worker_of(cluster, name, plugins), child, log, offset)


def wait_until_ready(started: Started) -> None:
    """Wait until the worker answers that it is ready.

    Raises:
        ClusterError: It ended first, or took too long; with the last lines of its log.
    """
    core = started.worker.settings.core
    name = started.worker.name
    deadline = time.monotonic() + _START_TIMEOUT_S
    fd = os.pidfd_open(started.process.pid)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while not client.is_ready(core):
            # The port says nothing until it answers, so it is asked again; the process's end is waited for meanwhile.
            if poll.poll(20):
                code = started.process.wait()
                how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
                raise ClusterError(f"{name} did not start ({how}); {tail(started)}")
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{name} did not answer within {_START_TIMEOUT_S:g} s; {tail(started)}"
                )
    finally:
        os.close(fd)


def tail(started: Started) -> str:
    """Quote the last lines of what the worker logged since it was started."""
    with started.log.open("rb") as file:
        file.seek(started.log_offset)
        return quote(started.log, file.read().decode(errors="replace"))


def quote(log: Path, text: str) -> str:
    """Quote the last lines of *text*, which stands in *log*."""
    lines = text.splitlines()[-_TAIL_LINES:]
    if not lines:
        return f"its log {log} is empty"
    return "\n".join([f"the last lines of {log}:", *(f"  {line}" for line in lines)])


def abandon(cluster: Cluster, started: Started) -> None:
    """Stop a worker whose start, or the start of another with it, has failed."""
    identity = processes.identify(started.process.pid)
    if identity:
        processes.stop([identity], signal.SIGTERM, 10.0)
        processes.kill_tree(identity)
    started.process.wait()
    cluster.worker_pid(started.worker.name).unlink(missing_ok=True)
    WorkerDir(cluster.worker_dir(started.worker.name)).process.unlink(missing_ok=True)
