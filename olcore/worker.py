"""Puts one worker together out of its configuration; the only module that knows every part."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import shutil
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from olcore.cluster import WorkerDir
from olcore.config import build_environment, uv_environment, worker_context
from olcore.errors import ClusterError, ConfigError
from olcore.handlers.compiling import SandboxCompiler
from olcore.handlers.manager import Manager
from olcore.handlers.options import Options
from olcore.handlers.packages import LOCKS, PackageOptions, Packages
from olcore.http import App, Gate, HttpOptions, RegistryAccess, make_app
from olcore.interfaces import (
    ImportCache,
    Registry,
    RegistryContext,
    SandboxPool,
    WorkerInfo,
    ZygotePool,
)

if TYPE_CHECKING:
    from olcore.config import Config, Settings
    from olcore.plugins import Plugins

log = logging.getLogger(__name__)

_PREDECESSOR_S = 10.0


class Worker:
    """One worker process's parts, from ``start`` to ``stop``.

    Args:
        name: Its name.
        settings: The checked configuration, resolved.
        plugins: Loaded.
        url: Where it listens.
    """

    def __init__(self, name: str, settings: Settings, plugins: Plugins, url: str) -> None:
        core = settings.core
        self._settings = settings
        self._plugins = plugins
        self._context = worker_context(name, core)
        self._folder = WorkerDir(self._context.worker_dir)
        self._gate = Gate()
        self._undo = AsyncExitStack()
        self.info = WorkerInfo(
            cluster_name=core.cluster_name,
            worker_name=name,
            url=url,
            sandbox=core.sandbox,
            registry=core.registry,
        )

    async def start(self) -> App:
        """Make every part, bottom up, and answer with the application that serves them.

        Call it in the main thread: a sandbox backend starts processes here that die with the thread that started them.

        Raises:
            OlcoreError: Something is missing or broken; whatever was made is undone.
        """
        core = self._settings.core
        self._plugins.require_usable(self._settings)
        async with AsyncExitStack() as undo:
            await self._own_folder(undo)
            pool = await self._start_pool(undo)
            registry = await self._start_registry(undo)
            scheduler = self._plugins.scheduler(core.scheduler)
            manager = Manager(
                pool=pool,
                registry=registry,
                scheduler=scheduler.make(self._settings.backends[core.scheduler]),
                import_cache=await self._start_import_cache(undo, pool),
                packages=await self._make_packages(undo, pool),
                options=Options.of(core),
                worker_dir=self._folder,
                emit=self._plugins.emit,
            )
            await manager.start()
            undo.push_async_callback(manager.close, 0.0)
            access = self._access(registry)
            app = make_app(manager, self.info, self._gate, _http_options(core), access)
            self._undo = undo.pop_all()
        # What has been imported and made by now stays: without it a full collection costs a request some 20 ms.
        gc.collect()
        gc.freeze()
        self._plugins.emit("ol_worker_started", worker=self.info)
        log.info("worker %s serves at %s", self.info.worker_name, self.info.url)
        return app

    def drain(self) -> None:
        """Turn new requests away from now on; those in flight go on."""
        self._gate.close()

    async def stop(self) -> None:
        """Cut off the requests that still run, and undo ``start``."""
        self.drain()
        self._plugins.emit("ol_worker_stopping", worker=self.info)
        self._plugins.flush()
        await self._undo.aclose()
        self._plugins.flush()
        log.info("worker %s has stopped", self.info.worker_name)

    async def _own_folder(self, undo: AsyncExitStack) -> None:
        worker_dir = self._folder
        worker_dir.root.mkdir(parents=True, exist_ok=True)
        lock = os.open(worker_dir.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        undo.callback(os.close, lock)
        # A predecessor that was killed may be ending still, and one that lost its arbiter is on its way: a folder with
        # two owners would have each clean away what the other runs.
        deadline = asyncio.get_running_loop().time() + _PREDECESSOR_S
        while not _is_locked(lock):
            if asyncio.get_running_loop().time() > deadline:
                raise ClusterError(
                    f"another worker uses {str(worker_dir.root)!r}",
                    hint="stop it, or give this one a worker_dir of its own",
                )
            await asyncio.sleep(0.05)
        self._clean()
        undo.callback(self._clear_folders)

    def _clean(self) -> None:
        core = self._settings.core
        backend = self._plugins.sandbox(core.sandbox)
        for removed in backend.clean(self._context, self._settings.backends[core.sandbox]):
            log.info("removed what a predecessor left: %s", removed)
        self._clear_folders()
        worker_dir = self._folder
        for folder in (worker_dir.handlers, worker_dir.code, worker_dir.backend(core.sandbox)):
            folder.mkdir(exist_ok=True)
        self._context.packages_dir.mkdir(parents=True, exist_ok=True)
        self._context.base_dir.mkdir(parents=True, exist_ok=True)

    def _clear_folders(self) -> None:
        worker_dir = self._folder
        for folder in (worker_dir.handlers, worker_dir.import_cache):
            if folder.is_dir():
                # rmtree works through directory descriptors and follows no link that a handler may have put there.
                shutil.rmtree(folder)

    async def _start_pool(self, undo: AsyncExitStack) -> SandboxPool:
        name = self._settings.core.sandbox
        backend = self._plugins.sandbox(name)
        pool = backend.make(self._context, self._settings.backends[name])
        undo.push_async_callback(pool.close)
        await pool.start()
        return pool

    async def _start_registry(self, undo: AsyncExitStack) -> Registry:
        core = self._settings.core
        context = RegistryContext(
            registry_dir=Path(core.registry_dir),
            timeout_s=core.registry_timeout_s,
            max_bundle_mb=core.max_bundle_mb,
            max_bundle_files=core.max_bundle_files,
        )
        backend = self._plugins.registry(core.registry)
        registry = backend.make(context, self._settings.backends[core.registry])
        undo.push_async_callback(registry.close)
        await registry.start()
        return registry

    async def _make_packages(self, undo: AsyncExitStack, pool: SandboxPool) -> Packages:
        packages_dir = self._context.packages_dir
        guest = await pool.probe()
        packages = Packages(
            packages_dir=packages_dir,
            # Beside the wheels, so that the workers of a cluster and `olcore install` resolve once for all of them.
            lock_dir=packages_dir / LOCKS,
            guest=guest,
            options=package_options(self._settings.core),
            compile_bytecode=SandboxCompiler(pool, self._folder),
        )
        undo.push_async_callback(packages.close)
        return packages

    def _access(self, registry: Registry) -> RegistryAccess | None:
        core = self._settings.core
        if not core.api_key:
            return None
        return RegistryAccess(registry=registry, api_key=core.api_key, options=Options.of(core))

    async def _start_import_cache(
        self, undo: AsyncExitStack, pool: SandboxPool
    ) -> ImportCache | None:
        name = self._settings.core.import_cache
        if not name:
            return None
        if not isinstance(pool, ZygotePool):
            raise ConfigError(
                f"the import cache {name!r} needs a sandbox with zygotes, and "
                f"{self._settings.core.sandbox!r} has none",
                hint="set import_cache to an empty text, or sandbox to one such as 'sock'",
            )
        backend = self._plugins.import_cache(name)
        cache = backend.make(self._context, self._settings.backends[name], pool)
        undo.push_async_callback(cache.close)
        await cache.start()
        return cache


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def package_options(core: Config) -> PackageOptions:
    """Take out of the configuration where packages come from."""
    return PackageOptions(
        index=core.package_index,
        extra_indexes=core.package_extra_indexes,
        find_links=core.package_find_links,
        offline=core.package_offline,
        allow_source_builds=core.allow_source_builds,
        environment=uv_environment(),
        build_environment=build_environment(),
        private=core.packages_private,
        retry_s=core.package_retry_s,
        timeout_s=core.package_timeout_s,
    )


def _http_options(core: Config) -> HttpOptions:
    # A handler may ask for more than the default, up to the maximum; only the manager knows which handler it is.
    most = max(core.limits.max_body_mb, core.max_limits.max_body_mb)
    return HttpOptions(max_body_mb=most, cors=core.cors)
