"""Clears what a worker that is no more left behind."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING

import click

from olcore import config
from olcore.cli.common import worker_of
from olcore.cluster import Cluster, WorkerDir
from olcore.errors import OlcoreError
from olcore.plugins import Kind, Plugins

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from olcore.interfaces import WorkerContext

log = logging.getLogger(__name__)


def clean(cluster: Cluster, name: str, plugins: Plugins) -> list[str]:
    """Remove everything of the worker *name*, which does not run, but its log and its caches.

    Every installed sandbox backend is asked, not only the chosen one: the choice may have changed since a crash.

    Returns:
        One line for each thing that was removed, pid file and folders left out.
    """
    try:
        settings = worker_of(cluster, name, plugins).settings
    except OlcoreError as error:
        _warn(f"{name}: {error}; cleaning with default settings")
        settings = config.check(
            {"cluster_name": str(cluster.root), "worker_dir": str(cluster.worker_dir(name))},
            plugins.sections(),
        )
        core = config.resolve(settings.core, cluster.root / "template.json")
        settings = config.Settings(core, settings.backends)
    removed = list(_clean_backends(config.worker_context(name, settings.core), settings, plugins))
    folder = WorkerDir(cluster.worker_dir(name))
    for path in (folder.handlers, folder.import_cache):
        _remove_tree(path)
    for path in (folder.process, cluster.worker_pid(name)):
        path.unlink(missing_ok=True)
    return [f"{name}: {line}" for line in removed]


def _clean_backends(
    context: WorkerContext, settings: config.Settings, plugins: Plugins
) -> Iterator[str]:
    for name in plugins.names(Kind.SANDBOX):
        try:
            yield from plugins.sandbox(name).clean(context, settings.backends[name])
        except Exception as error:
            # One backend that cannot clean (its engine is away) must not keep another from doing so; it matters to
            # the operator only where it was in use.
            log.debug("cleaning with %s", name, exc_info=True)
            if name == settings.core.sandbox:
                _warn(f"{context.worker_name}: the sandbox {name!r} could not clean up: {error}")


def _remove_tree(path: Path) -> None:
    if path.is_symlink() or not path.exists():
        return
    failed: list[str] = []
    shutil.rmtree(path, onerror=lambda _function, at, error: failed.append(f"{at}: {error[1]}"))
    if failed:
        _warn(f"could not remove all of {str(path)!r}: {failed[0]}")


def _warn(text: str) -> None:
    click.echo(f"olcore: warning: {text}", err=True)
