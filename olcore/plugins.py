"""Finds plugins by their entry points, picks the configured backends and tells listeners what happens.

Each entry point of the group ``olcore`` is loaded on its own. A plugin that cannot be imported, or that breaks a rule
of hookspecs.py, is kept with its error for ``olcore plugins`` to show, takes no part in anything else, and stops no
other plugin. Nothing is loaded when this module is imported.
"""

from __future__ import annotations

import asyncio
import difflib
import inspect
import logging
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

import msgspec
import pluggy

from olcore import config, hookspecs
from olcore.errors import BackendUnusableError, PluginError, PluginNotFoundError
from olcore.interfaces import (
    ImportCacheBackend,
    RegistryBackend,
    SandboxBackend,
    SchedulerBackend,
)

log = logging.getLogger(__name__)

Backend = (
    SandboxBackend[Any] | RegistryBackend[Any] | SchedulerBackend[Any] | ImportCacheBackend[Any]
)

_GROUP = "olcore"
_NAME = re.compile(r"[a-z][a-z0-9_-]*")


class Kind(StrEnum):
    """What a backend is for; also the core's key that chooses it."""

    SANDBOX = "sandbox"
    REGISTRY = "registry"
    SCHEDULER = "scheduler"
    IMPORT_CACHE = "import_cache"

    @property
    def package(self) -> str:
        """How a distribution with such a backend is called by convention, less the backend's name."""
        return "ol-cache-" if self is Kind.IMPORT_CACHE else f"ol-{self.value}-"

    def __str__(self) -> str:
        """Say it as people do."""
        return self.value.replace("_", " ")


_REGISTRATION: Mapping[str, tuple[Kind, type[Backend]]] = {
    "ol_sandbox_backends": (Kind.SANDBOX, SandboxBackend),
    "ol_registry_backends": (Kind.REGISTRY, RegistryBackend),
    "ol_scheduler_backends": (Kind.SCHEDULER, SchedulerBackend),
    "ol_import_cache_backends": (Kind.IMPORT_CACHE, ImportCacheBackend),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendStatus:
    """One line of ``olcore plugins``: a backend, and whether it can run here."""

    kind: Kind
    name: str
    summary: str
    why_unusable: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginStatus:
    """One plugin as ``olcore plugins`` shows it."""

    plugin: str
    distribution: str
    version: str
    backends: Sequence[BackendStatus]
    error: str | None


@dataclass(slots=True, kw_only=True)
class _Plugin:
    name: str
    distribution: str = "?"
    version: str = "?"
    backends: list[tuple[Kind, Backend]] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Implementation:
    """One plugin's implementation of one hook."""

    hook: str
    plugin: str
    function: Callable[..., Any]
    arguments: Sequence[str]

    def call(self, arguments: Mapping[str, Any]) -> Any:  # noqa: ANN401 - as the hook's
        """Call it with those of *arguments* that it asks for."""
        return self.function(**{name: arguments[name] for name in self.arguments})


class Plugins:
    """The plugins of one process. Use it from one thread.

    Args:
        debug: Whether to print each hook call on stderr.
    """

    def __init__(self, *, debug: bool = False) -> None:
        self._debug = debug
        self._manager = pluggy.PluginManager(_GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._hooks = {name for name in vars(hookspecs) if name.startswith("ol_")}
        self._plugins: list[_Plugin] = []
        self._backends: dict[str, tuple[Kind, Backend]] = {}
        self._implementations: dict[str, Sequence[Implementation]] = {}
        self._events: deque[tuple[Implementation, Mapping[str, Any]]] = deque()

    @classmethod
    def load(cls) -> Plugins:
        """Load every installed plugin; never raises because of one of them."""
        plugins = cls(debug=config.is_debug_hooks())
        found = entry_points(group=_GROUP)
        # olcore's own come first, so that a plugin that takes a built-in name is the one that is refused.
        for point in sorted(found, key=lambda each: (_distribution(each) != "olcore", each.name)):
            plugins.add_entry_point(point)
        return plugins

    def add_entry_point(self, point: EntryPoint) -> None:
        """Load one entry point, and keep its error when it has one."""
        dist = point.dist
        plugin = _Plugin(
            name=point.name,
            distribution=_distribution(point),
            version=dist.version if dist else "?",
        )
        try:
            module = point.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a broken plugin breaks no other
            plugin.error = f"{type(error).__name__}: {error}"
            self._plugins.append(plugin)
        else:
            self._add(plugin, module)

    def add(self, name: str, module: object) -> None:
        """Add a plugin that is no entry point, such as one that a test made."""
        self._add(_Plugin(name=name), module)

    def _add(self, plugin: _Plugin, module: object) -> None:
        self._plugins.append(plugin)
        self._implementations.clear()
        try:
            self._refuse_bad_hooks(module)
            self._manager.register(module, plugin.name)
        except (PluginError, pluggy.PluginValidationError, ValueError) as error:
            plugin.error = str(error)
            # A failed register leaves the plugin half registered.
            if self._manager.get_plugin(plugin.name) is module:
                self._manager.unregister(name=plugin.name)
            return
        try:
            for hook, (kind, described) in _REGISTRATION.items():
                for implementation in self.implementations(hook):
                    if implementation.plugin == plugin.name:
                        self._collect(plugin, kind, described, implementation)
        except Exception as error:  # noqa: BLE001 - a broken plugin breaks no other
            known = isinstance(error, PluginError)
            plugin.error = str(error) if known else f"{type(error).__name__}: {error}"
            plugin.backends.clear()
            self._manager.unregister(name=plugin.name)
            self._implementations.clear()
        else:
            self._backends.update({b.name: (kind, b) for kind, b in plugin.backends})

    def _refuse_bad_hooks(self, module: object) -> None:
        for name in dir(module):
            function = getattr(module, name, None)
            marked = getattr(function, f"{_GROUP}_impl", None)
            if marked is None:
                if name in self._hooks and callable(function):
                    raise PluginError(f"{name} lacks @olcore.hookimpl")
                continue
            if name not in self._hooks:
                near = difflib.get_close_matches(name, self._hooks, 1)
                meant = f"; did you mean {near[0]}?" if near else ""
                raise PluginError(f"olcore has no hook {name!r}{meant}")
            if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
                # Nobody would await it: it would do nothing, and say nothing.
                raise PluginError(f"{name} is async; hooks are plain functions")
            if marked["wrapper"] or marked["hookwrapper"]:
                raise PluginError(f"{name} is a wrapper; implementations are called one at a time")

    def _collect(
        self, plugin: _Plugin, kind: Kind, described: type[Backend], implementation: Implementation
    ) -> None:
        self._trace(implementation, {})
        for backend in implementation.call({}):
            if not isinstance(backend, described):
                raise PluginError(
                    f"{implementation.hook} answered {backend!r}, not a {described.__name__}"
                )
            self._refuse_bad_backend(backend)
            plugin.backends.append((kind, backend))

    def _refuse_bad_backend(self, backend: Backend) -> None:
        name = backend.name
        if not _NAME.fullmatch(name):
            raise PluginError(f"{name!r} is no name for a backend; one matches {_NAME.pattern}")
        if name in config.Config.__struct_fields__:
            raise PluginError(f"the backend name {name!r} is a key of olcore's configuration")
        owners = [p.name for p in self._plugins if any(b.name == name for _, b in p.backends)]
        if owners:
            raise PluginError(f"the backend name {name!r} is taken by the plugin {owners[0]!r}")
        try:
            is_struct = isinstance(cast("object", backend.settings()), msgspec.Struct)
        except TypeError as error:
            raise PluginError(f"a setting of {name!r} has no default: {error}") from error
        if not is_struct:
            raise PluginError(f"the settings of {name!r} are no msgspec struct")

    def implementations(self, hook: str) -> Sequence[Implementation]:
        """List who implements *hook*, in the order in which they are called."""
        known = self._implementations.get(hook)
        if known is None:
            caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
            # pluggy lists them in the reverse order of its own calls.
            known = self._implementations[hook] = tuple(
                Implementation(hook, each.plugin_name, each.function, tuple(each.argnames))
                for each in reversed(caller.get_hookimpls())
            )
        return known

    def complain(self, plugin: str, error: str) -> None:
        """Keep an error of *plugin* that came up after loading, for ``listed``."""
        for each in self._plugins:
            if each.name == plugin:
                each.error = error

    def sections(self) -> dict[str, type[msgspec.Struct]]:
        """Give each backend's settings by its name: the schema of a configuration beside the core's."""
        return {name: backend.settings for name, (_, backend) in self._backends.items()}

    def names(self, kind: Kind) -> list[str]:
        """List the installed backends of one kind, sorted."""
        return sorted(name for name, (other, _) in self._backends.items() if other is kind)

    def sandbox(self, name: str) -> SandboxBackend[Any]:
        """Find a sandbox backend.

        Raises:
            PluginNotFoundError: Nothing installed offers it; says what is, and what to install.
        """
        return cast("SandboxBackend[Any]", self._find(Kind.SANDBOX, name))

    def registry(self, name: str) -> RegistryBackend[Any]:
        """Find a registry backend; fails as ``sandbox`` does."""
        return cast("RegistryBackend[Any]", self._find(Kind.REGISTRY, name))

    def scheduler(self, name: str) -> SchedulerBackend[Any]:
        """Find a scheduler; fails as ``sandbox`` does."""
        return cast("SchedulerBackend[Any]", self._find(Kind.SCHEDULER, name))

    def import_cache(self, name: str) -> ImportCacheBackend[Any]:
        """Find an import cache.

        Raises:
            PluginNotFoundError: Nothing installed offers it; says what is, and what to install.
        """
        return cast("ImportCacheBackend[Any]", self._find(Kind.IMPORT_CACHE, name))

    def _find(self, kind: Kind, name: str) -> Backend:
        found = self._backends.get(name)
        if found and found[0] is kind:
            return found[1]
        installed = ", ".join(self.names(kind)) or "none"
        message = f"no plugin offers the {kind} {name!r}; installed: {installed}"
        if found:
            message = f"{name!r} is a {found[0]}, not a {kind}; installed: {installed}"
        broken = [each.name for each in self._plugins if each.error]
        hint = f"pip install {kind.package}{name}"
        if found:
            hint = f"set {kind.value!r} to one that is installed"
        elif broken:
            hint += f"; or see in 'olcore plugins' what is wrong with {', '.join(broken)}"
        raise PluginNotFoundError(message, hint=hint)

    def chosen(
        self, core: config.Config, kinds: Iterable[Kind] = tuple(Kind)
    ) -> dict[Kind, Backend]:
        """Find every backend of these kinds that a configuration chooses.

        Raises:
            PluginNotFoundError: One is not installed.
        """
        names = {kind: getattr(core, kind.value) for kind in kinds}
        # The import cache may be none.
        return {
            kind: self._find(kind, name)
            for kind, name in names.items()
            if name or kind != Kind.IMPORT_CACHE
        }

    def require_usable(self, settings: config.Settings) -> None:
        """Check that every backend that a configuration chooses can run on this machine.

        Raises:
            PluginNotFoundError: One is not installed.
            BackendUnusableError: One cannot run; says why.
        """
        for kind, backend in self.chosen(settings.core).items():
            why = why_unusable(backend, settings.backends.get(backend.name))
            if why:
                raise BackendUnusableError(
                    f"the {kind} {backend.name!r} cannot run here: {why}",
                    hint="'olcore plugins' lists what can",
                )

    def listed(self, settings: Mapping[str, msgspec.Struct] | None = None) -> list[PluginStatus]:
        """Describe every plugin, broken ones too.

        Args:
            settings: Backends' settings by name, which decide whether one can run; defaults where absent.
        """
        given = settings or {}
        return [
            PluginStatus(
                plugin=plugin.name,
                distribution=plugin.distribution,
                version=plugin.version,
                error=plugin.error,
                backends=[
                    BackendStatus(
                        kind=kind,
                        name=backend.name,
                        summary=backend.summary,
                        why_unusable=why_unusable(backend, given.get(backend.name)),
                    )
                    for kind, backend in plugin.backends
                ],
            )
            for plugin in self._plugins
        ]

    def emit(self, hook: str, **arguments: Any) -> None:  # noqa: ANN401 - as the hook's
        """Queue an event; the running loop delivers it after the callbacks that are ready now.

        Args:
            hook: An event hook's name.
            arguments: All of the hook's.
        """
        listeners = self.implementations(hook)
        if not listeners:
            return
        if not self._events:
            asyncio.get_running_loop().call_soon(self.flush)
        self._events.extend((listener, arguments) for listener in listeners)

    def flush(self) -> None:
        """Deliver every queued event now; for a worker that stops, and for tests."""
        while self._events:
            listener, arguments = self._events.popleft()
            self._trace(listener, arguments)
            try:
                listener.call(arguments)
            except Exception:
                log.exception("the plugin %r failed in %s", listener.plugin, listener.hook)

    def _trace(self, implementation: Implementation, arguments: Mapping[str, Any]) -> None:
        if self._debug:
            said = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            # Printed, not logged: it must show whatever the log's level, and before there is a log.
            print(f"hook {implementation.hook}({said}) -> {implementation.plugin}", file=sys.stderr)  # noqa: T201


def why_unusable(backend: Backend, settings: msgspec.Struct | None) -> str | None:
    """Ask *backend* why it cannot run here; a question that fails is an answer too."""
    try:
        return backend.why_unusable(settings or backend.settings())
    except Exception as error:  # noqa: BLE001 - a backend that cannot tell breaks no command
        return f"why_unusable failed: {type(error).__name__}: {error}"


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "?"
