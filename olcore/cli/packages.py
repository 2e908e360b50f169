"""Commands about packages: install a handler's ahead of time, list what is installed, remove what nobody uses."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from click.core import ParameterSource
from rich.console import Console
from rich.progress import Progress as Bar

from olcore.cli.common import cluster_option, worker_names, worker_of
from olcore.cluster import WorkerDir
from olcore.config import worker_context
from olcore.handlers.compiling import SandboxCompiler
from olcore.handlers.packages import LOCKS, Packages
from olcore.handlers.packages.inventory import Installed, inventory, prune
from olcore.interfaces import Registry, RegistryContext, SandboxPool

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from olcore.cluster import Cluster
    from olcore.config import Settings
    from olcore.handlers.packages import Progress
    from olcore.plugins import Plugins


_CLUSTER = "olcore.cluster"


@click.command()
@cluster_option
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.pass_obj
def install(plugins: Plugins, cluster: Cluster, names: Sequence[str]) -> None:
    """Install the packages of handlers, so that their first request need not wait for it."""
    settings = _settings(plugins, cluster)
    with _progress() as show:
        wheels = asyncio.run(_install(plugins, cluster, settings, names, show))
    for name, count in wheels.items():
        click.echo(f"{name}: {count} package{'' if count == 1 else 's'} in place")


@click.group("packages", invoke_without_command=True)
@cluster_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def packages(context: click.Context, cluster: Cluster, as_json: bool) -> None:
    """List the installed packages, their size, and which handlers use them."""
    context.meta[_CLUSTER] = cluster
    if context.invoked_subcommand is not None:
        return
    settings = _settings(context.obj, cluster)
    folder = Path(settings.core.packages_dir)
    found = inventory(folder, folder / LOCKS, _preloaded(context.obj, cluster, settings))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        click.echo("\n".join(lines(found)))


@packages.command("prune")
@cluster_option
@click.pass_context
def prune_unused(context: click.Context, cluster: Cluster) -> None:
    """Remove the packages that no handler in the registry uses, nor a tree that import caches preload."""
    if context.get_parameter_source("cluster") is ParameterSource.DEFAULT:
        cluster = context.meta[_CLUSTER]  # given before the word prune, if anywhere
    plugins: Plugins = context.obj
    settings = _settings(plugins, cluster)
    preloaded = _preloaded(plugins, cluster, settings)
    removed = asyncio.run(_prune(plugins, settings, preloaded))
    for one in removed:
        click.echo(f"removed {one.wheel} ({_mib(one.size_bytes)})")
    click.echo(f"freed {_mib(sum(one.size_bytes for one in removed))}")


def lines(found: Sequence[Installed]) -> Iterator[str]:
    """Write a table of wheels, its total at the end."""
    width = max([len(one.wheel) for one in found], default=0)
    for one in found:
        cache = ("the import cache",) if one.is_preloaded else ()
        users = ", ".join((*one.used_by, *cache)) or "nobody"
        yield f"{one.wheel.ljust(width)}  {_mib(one.size_bytes):>10}  used by {users}"
    yield f"{len(found)} packages, {_mib(sum(one.size_bytes for one in found))}"


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def _settings(plugins: Plugins, cluster: Cluster) -> Settings:
    # As a worker would be configured that starts now; the name leads to no file, so the template counts.
    return worker_of(cluster, _name(), plugins).settings


def _preloaded(plugins: Plugins, cluster: Cluster, template: Settings) -> set[str]:
    """Name the wheels that an import cache of any worker imports at start, or would if it were started now."""
    found: set[str] = set()
    for name in (*worker_names(cluster), _name()):
        for settings in (worker_of(cluster, name, plugins).settings, template):
            core = settings.core
            if core.import_cache:
                backend = plugins.import_cache(core.import_cache)
                own = settings.backends[core.import_cache]
                found |= {*backend.preloads(own, cluster.worker_dir(name), Path(core.packages_dir))}
    return found


def _name() -> str:
    return f"install-{os.getpid()}"


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    console = Console(stderr=True)
    if not sys.stderr.isatty():
        yield lambda progress: console.print(_said(progress), highlight=False, markup=False)
        return
    with Bar(console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda progress: bar.update(
            task, description=progress.what, completed=progress.done, total=progress.total or None
        )


def _said(progress: Progress) -> str:
    if not progress.total:
        return progress.what
    return f"installed {progress.what} ({progress.done} of {progress.total})"


async def _install(
    plugins: Plugins,
    cluster: Cluster,
    settings: Settings,
    names: Sequence[str],
    show: Callable[[Progress], None],
) -> dict[str, int]:
    # Imported here, because it brings the HTTP server along, which no other command should pay for.
    from olcore.worker import package_options

    folder = Path(settings.core.packages_dir)
    async with AsyncExitStack() as undo:
        registry = await _registry(undo, plugins, settings)
        own = Path(cluster.workers / _name())
        own.mkdir(parents=True)
        undo.callback(shutil.rmtree, own, ignore_errors=True)
        pool = await _pool(undo, plugins, settings, own)
        guest = await pool.probe()
        installer = Packages(
            packages_dir=folder,
            lock_dir=folder / LOCKS,
            guest=guest,
            options=package_options(settings.core),
            compile_bytecode=SandboxCompiler(pool, WorkerDir(own)),
            on_progress=show,
        )
        undo.push_async_callback(installer.close)
        counts = {}
        for name in names:
            code = own / "code" / name
            code.mkdir(parents=True)
            await registry.pull(await registry.lookup(name), code)
            counts[name] = len((await installer.prepare(code, handler=name)).wheels)
        return counts


async def _prune(
    plugins: Plugins, settings: Settings, preloaded: Collection[str]
) -> Sequence[Installed]:
    folder = Path(settings.core.packages_dir)
    async with AsyncExitStack() as undo:
        registry = await _registry(undo, plugins, settings)
        names = {version.name for version in await registry.names()}
        return await prune(folder, folder / LOCKS, names, preloaded)


async def _registry(undo: AsyncExitStack, plugins: Plugins, settings: Settings) -> Registry:
    core = settings.core
    context = RegistryContext(
        registry_dir=Path(core.registry_dir),
        timeout_s=core.registry_timeout_s,
        max_bundle_mb=core.max_bundle_mb,
        max_bundle_files=core.max_bundle_files,
    )
    made: Any = plugins.registry(core.registry).make(context, settings.backends[core.registry])
    registry: Registry = made
    undo.push_async_callback(registry.close)
    await registry.start()
    return registry


async def _pool(
    undo: AsyncExitStack, plugins: Plugins, settings: Settings, own: Path
) -> SandboxPool:
    """Start a pool: only its sandboxes know which Python they run."""
    core = settings.core
    for folder in (own / core.sandbox, own / "handlers"):
        folder.mkdir()
    context = worker_context(own.name, core)
    context.packages_dir.mkdir(parents=True, exist_ok=True)
    context.base_dir.mkdir(parents=True, exist_ok=True)
    made: Any = plugins.sandbox(core.sandbox).make(context, settings.backends[core.sandbox])
    pool: SandboxPool = made
    undo.push_async_callback(pool.close)
    await pool.start()
    return pool
