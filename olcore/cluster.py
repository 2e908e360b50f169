"""The cluster folder: every path in it has its name here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDERS = ("config", "logs", "base", "packages", "registry", "workers")


@dataclass(frozen=True, slots=True)
class Cluster:
    """The folder that holds the configuration and state of the workers on one machine; makes nothing by itself.

    Args:
        root: Its absolute path.
    """

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config"

    @property
    def template(self) -> Path:
        """What every new worker is configured from."""
        return self.config / "template.json"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def base(self) -> Path:
        """The root file system of sandboxes; empty for a backend's default."""
        return self.root / "base"

    @property
    def packages(self) -> Path:
        """One folder for each installed wheel; ``/packages`` inside."""
        return self.root / "packages"

    @property
    def registry(self) -> Path:
        """The local handler store."""
        return self.root / "registry"

    @property
    def registry_server(self) -> Path:
        """What the server that ``olcore registry`` starts keeps."""
        return self.root / "registry-server"

    @property
    def registry_log(self) -> Path:
        return self.logs / "registry.out"

    @property
    def registry_pid(self) -> Path:
        """Holds one number, the process id of the registry server."""
        return self.logs / "registry.pid"

    @property
    def registry_process(self) -> Path:
        """Which process the registry server is, and where it listens."""
        return self.config / "registry-server.json"

    @property
    def workers(self) -> Path:
        return self.root / "workers"

    def worker_config(self, name: str) -> Path:
        return self.config / f"{name}.json"

    def worker_log(self, name: str) -> Path:
        return self.logs / f"{name}.out"

    def worker_pid(self, name: str) -> Path:
        """Holds one number, the process id of the worker's arbiter."""
        return self.logs / f"{name}.pid"

    def worker_dir(self, name: str) -> Path:
        return self.workers / name

    @property
    def lock(self) -> Path:
        """Held by a command that starts or stops workers."""
        return self.config / ".lock"


@dataclass(frozen=True, slots=True)
class WorkerDir:
    """One worker's own folder, ``workers/worker-<N>``.

    Args:
        root: Its absolute path.
    """

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def process(self) -> Path:
        """Which process the worker is, so that nothing else is ever taken for it."""
        return self.root / "process.json"

    @property
    def handlers(self) -> Path:
        """``<handler>/<instance>`` below it is an instance's ``/host``."""
        return self.root / "handlers"

    @property
    def code(self) -> Path:
        """The code cache: ``<handler>/<version>`` below it is an instance's ``/handler``."""
        return self.root / "code"

    @property
    def import_cache(self) -> Path:
        """``<zygote>`` below it holds a zygote's ``stdout`` and ``stderr``."""
        return self.root / "import-cache"

    def backend(self, name: str) -> Path:
        """What the backend *name* keeps for itself."""
        return self.root / name
