"""Puts handlers into the cluster's registry, lists them, and takes them out."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from olcore import bundles, config
from olcore.cli.common import cluster_option, read_template, without_foreign
from olcore.errors import PluginNotFoundError, RegistryError
from olcore.handlers import uploads
from olcore.handlers.manager import check_name
from olcore.handlers.options import Options
from olcore.interfaces import (
    HandlerVersion,
    Registry,
    RegistryAddress,
    RegistryBackend,
    RegistryContext,
)
from olcore.plugins import Kind, Plugins

if TYPE_CHECKING:
    from olcore.cluster import Cluster

Command = TypeVar("Command", bound=Callable[..., Any])
_Value = TypeVar("_Value")

_LARGE_BYTES = 4 << 20


def _checked_name(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    check_name(value)
    return value


def registry_options(command: Command) -> Command:
    """Give *command* the options that say which registry it works on."""
    for option in (
        click.option(
            "--timeout",
            "timeout_s",
            type=click.FloatRange(min=0, min_open=True),
            default=300.0,
            show_default=True,
            help="Seconds that the registry has for each answer.",
        ),
        click.option(
            "--secret-key", default="", envvar="OLCORE_SECRET_KEY", help="With --address."
        ),
        click.option(
            "--access-key", default="", envvar="OLCORE_ACCESS_KEY", help="With --address."
        ),
        click.option(
            "--address",
            default="",
            help="Another registry server than the cluster's: HOST:PORT or URL.",
        ),
        cluster_option,
    ):
        command = option(command)
    return command


version_option = click.option(
    "--if-version",
    metavar="VERSION",
    help="Refuse when the registry has another version by now; '' when it has any.",
)


class _Target:
    """The registry that a command works on, out of the command's options."""

    def __init__(self, plugins: Plugins, cluster: Cluster, chosen: dict[str, Any]) -> None:
        raw = read_template(cluster) if cluster.template.is_file() or not chosen["address"] else {}
        raw = without_foreign(raw, cluster.template, plugins)
        settings = config.check(raw, plugins.sections(), str(cluster.template))
        # As for a worker: a relative path in the template counts from the cluster's folder.
        self.core = config.resolve(settings.core, cluster.root / "template.json")
        self._timeout_s: float = chosen["timeout_s"]
        if not chosen["address"]:
            _refuse_keys()
        backend = plugins.registry(self.core.registry)
        own: Any = settings.backends[backend.name]
        if chosen["address"]:
            backend = _with_address(plugins, backend)
            assert backend.addressed is not None  # noqa: S101  # chosen for it
            address = RegistryAddress(
                address=chosen["address"],
                access_key=chosen["access_key"],
                secret_key=chosen["secret_key"],
            )
            own = backend.addressed(address, settings.backends[backend.name])
        why = backend.why_unusable(own)
        if why:
            raise RegistryError(f"the registry {backend.name!r} cannot be used here: {why}")
        self._backend, self._own = backend, own

    @property
    def options(self) -> Options:
        """What a handler may be and ask for."""
        return Options.of(self.core)

    def ask(self, question: Callable[[Registry], Awaitable[_Value]]) -> _Value:
        """Start the registry, ask it one thing, and close it."""
        return asyncio.run(self._ask(question))

    async def _ask(self, question: Callable[[Registry], Awaitable[_Value]]) -> _Value:
        context = RegistryContext(
            registry_dir=Path(self.core.registry_dir),
            timeout_s=self._timeout_s,
            max_bundle_mb=self.core.max_bundle_mb,
            max_bundle_files=self.core.max_bundle_files,
        )
        registry = self._backend.make(context, self._own)
        try:
            await registry.start()
            return await question(registry)
        finally:
            await registry.close()


def _refuse_keys() -> None:
    # Those of the environment may be there for another command.
    context = click.get_current_context()
    for name in ("access_key", "secret_key"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise RegistryError(
                f"--{name.replace('_', '-')} goes with --address",
                hint="the keys of the cluster's own registry are settings of its backend: olcore setconf",
            )


def _with_address(plugins: Plugins, chosen: RegistryBackend[Any]) -> RegistryBackend[Any]:
    others = (plugins.registry(name) for name in plugins.names(Kind.REGISTRY))
    for backend in (chosen, *others):
        if backend.addressed is not None:
            return backend
    raise PluginNotFoundError(
        "no installed registry has servers with an address", hint="pip install ol-registry-s3"
    )


@click.command()
@registry_options
@click.option("--handler", "name", required=True, callback=_checked_name, help="Its name.")
@click.option(
    "--file",
    required=True,
    type=click.Path(path_type=Path),
    help="Its folder, or a .tar.gz with the entry file at the top.",
)
@version_option
@click.pass_obj
def upload(
    plugins: Plugins,
    /,
    cluster: Cluster,
    name: str,
    file: Path,
    if_version: str | None,
    **chosen: Any,  # noqa: ANN401  # registry_options
) -> None:
    """Put a handler into the registry: all of it or nothing, and only what could be run."""
    target = _Target(plugins, cluster, chosen)
    with tempfile.TemporaryDirectory(prefix="olcore-upload-") as folder:
        bundle = uploads.pack(file, Path(folder) / "bundle.tar.gz", target.options)
        uploads.check_bundle(bundle, target.options, str(file))
        size = bundle.stat().st_size
        with _shown(f"Uploading {name}", size):
            version = target.ask(lambda registry: registry.publish(name, bundle, if_version))
    print(f"Uploaded {name} ({_size(size)}), version {version.version}")


@click.command()
@registry_options
@click.pass_obj
def handlers(plugins: Plugins, /, cluster: Cluster, **chosen: Any) -> None:  # noqa: ANN401  # registry_options
    """List the handlers in the registry, each with its version."""
    found = _Target(plugins, cluster, chosen).ask(lambda registry: registry.names())
    width = max((len(version.name) for version in found), default=0)
    for version in found:
        print(f"{version.name:{width}}  {version.version}")
    if not found:
        click.echo("The registry has no handlers", err=True)


@click.command()
@registry_options
@click.argument("name", callback=_checked_name)
@version_option
@click.pass_obj
def remove(
    plugins: Plugins,
    /,
    cluster: Cluster,
    name: str,
    if_version: str | None,
    **chosen: Any,  # noqa: ANN401  # registry_options
) -> None:
    """Take a handler out of the registry."""
    _Target(plugins, cluster, chosen).ask(lambda registry: registry.remove(name, if_version))
    print(f"Removed {name}")


@click.command()
@registry_options
@click.argument("name", callback=_checked_name)
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    help="A folder to make, or FILE.tar.gz.  [default: ./NAME]",
)
@click.pass_obj
def download(
    plugins: Plugins,
    /,
    cluster: Cluster,
    name: str,
    to: Path | None,
    **chosen: Any,  # noqa: ANN401  # registry_options
) -> None:
    """Fetch a handler from the registry."""
    target = _Target(plugins, cluster, chosen)
    to = to or Path(name)
    if to.exists():
        raise RegistryError(f"{str(to)!r} exists", hint="remove it, or choose another with --to")
    # On the same file system, and no folder is made before there is something to put into it.
    above = next(parent for parent in to.absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=".olcore-download-", dir=above) as folder:
        code = Path(folder) / "code"
        code.mkdir()
        version = target.ask(lambda registry: _newest(registry, name, code))
        if to.name.endswith(".tar.gz"):
            bundles.pack(code, Path(folder) / "bundle", uploads.bounds(target.options))
            code = Path(folder) / "bundle"
        to.parent.mkdir(parents=True, exist_ok=True)
        code.rename(to)
    print(f"Downloaded {name}, version {version.version}, to {to}")


async def _newest(registry: Registry, name: str, code: Path) -> HandlerVersion:
    return await registry.pull(await registry.lookup(name), code)


@contextmanager
def _shown(what: str, size: int) -> Iterator[None]:
    if size < _LARGE_BYTES or not sys.stderr.isatty():
        yield
        return
    # Imported here, because it takes longer than most commands.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        # A registry does not say how far it is.
        progress.add_task(f"{what} ({_size(size)})", total=None)
        yield


def _size(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB" if size >= 1 << 20 else f"{size / 1024:.1f} KiB"
