"""Makes a cluster's folder."""

from __future__ import annotations

import shutil
from contextlib import ExitStack

import click

from olcore import config
from olcore.cli import bases
from olcore.cli.common import cluster_option, shown
from olcore.cluster import FOLDERS, Cluster
from olcore.errors import ClusterError
from olcore.plugins import Kind, Plugins, why_unusable

_PREFERRED = ("sock", "docker")


@click.command()
@cluster_option
@click.option(
    "--base",
    metavar="WHAT",
    default=bases.HOST,
    show_default=True,
    help="The root file system of sandboxes: docker:IMAGE, a folder, a tar archive, or this host's own.",
)
@click.pass_obj
def new(plugins: Plugins, cluster: Cluster, base: str) -> None:
    """Make a cluster: a folder with its configuration, handlers, packages and logs."""
    sandbox = pick_sandbox(plugins.names(Kind.SANDBOX))
    with ExitStack() as undo:
        make_folder(cluster, undo)
        template = config.defaults(plugins.sections()) | {"sandbox": sandbox}
        config.write(cluster.template, template)
        filled = bases.fill(cluster.base, base, plugins) if base != bases.HOST else None
        undo.pop_all()
    print(f"Cluster directory: {cluster.root}")
    print(f"Worker defaults:   {cluster.template}")
    print(f"Handlers go into:  {cluster.registry}")
    if filled:
        print(f"Base:              {filled}")
    print(f"Sandbox:           {sandbox}{_warning(plugins, sandbox)}")
    print(f"Next: olcore workers --cluster {shown(cluster)}")


def pick_sandbox(installed: list[str]) -> str:
    """Pick the sandbox of a new cluster: sock, docker, or any other; sock when none is installed."""
    return next((name for name in (*_PREFERRED, *installed) if name in installed), _PREFERRED[0])


def make_folder(cluster: Cluster, undo: ExitStack) -> None:
    """Make the folder and those in it; *undo* removes them again.

    Raises:
        ClusterError: The path exists, its parent does not, or the system refuses.
    """
    root = cluster.root
    try:
        root.mkdir(mode=0o700)
        undo.callback(shutil.rmtree, root, ignore_errors=True)
        for name in FOLDERS:
            folder = root / name
            folder.mkdir()
            # Said once more, because the umask may take away what sandboxes need: other users enter some of these.
            folder.chmod(0o755)
    except FileExistsError as error:
        raise ClusterError(
            f"{str(root)!r} exists", hint="name another folder, or remove this one"
        ) from error
    except FileNotFoundError as error:
        raise ClusterError(
            f"the folder {str(root.parent)!r} does not exist", hint=f"mkdir -p {root.parent}"
        ) from error
    except OSError as error:
        raise ClusterError(f"cannot make {str(root)!r}: {error.strerror}") from error


def _warning(plugins: Plugins, sandbox: str) -> str:
    if sandbox not in plugins.names(Kind.SANDBOX):
        return f" (not installed: pip install ol-sandbox-{sandbox})"
    why = why_unusable(plugins.sandbox(sandbox), None)
    return f" (cannot run here: {why})" if why else ""
