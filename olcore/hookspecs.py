"""Every hook of olcore, documented in full; nothing else.

A plugin is a module named by an entry point of the group ``olcore``; its functions marked ``@olcore.hookimpl`` are
called as said here. Two kinds: a *registration* hook returns descriptions of backends and is called once when plugins
are loaded; an *event* hook is told what happened in a worker, on the event loop, after the reply has gone out, one
listener at a time. A listener that raises is logged with its plugin's name, and hurts nobody. Event hooks are plain
functions: a coroutine function is refused when its plugin is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Sequence

    import click

    from olcore.interfaces import (
        BaseSource,
        DestroyReason,
        HandlerVersion,
        ImportCacheBackend,
        InstanceInfo,
        Invocation,
        Outcome,
        RegistryBackend,
        SandboxBackend,
        SchedulerBackend,
        WorkerInfo,
    )

hookspec = pluggy.HookspecMarker("olcore")
hookimpl = pluggy.HookimplMarker("olcore")


@hookspec
def ol_sandbox_backends() -> Sequence[SandboxBackend[Any]]:
    """Describe the sandbox backends that this plugin offers.

    Called once when plugins are loaded. All answers count. Import nothing heavy: that belongs into ``make``.

    Returns:
        Descriptions; a name that another backend of any kind has makes the later plugin broken.
    """
    raise NotImplementedError


@hookspec
def ol_registry_backends() -> Sequence[RegistryBackend[Any]]:
    """Describe the registry backends that this plugin offers.

    Called once when plugins are loaded. All answers count. Import nothing heavy: that belongs into ``make``.

    Returns:
        Descriptions; a name that another backend of any kind has makes the later plugin broken.
    """
    raise NotImplementedError


@hookspec
def ol_scheduler_backends() -> Sequence[SchedulerBackend[Any]]:
    """Describe the schedulers that this plugin offers.

    Called once when plugins are loaded. All answers count.

    Returns:
        Descriptions; a name that another backend of any kind has makes the later plugin broken.
    """
    raise NotImplementedError


@hookspec
def ol_import_cache_backends() -> Sequence[ImportCacheBackend[Any]]:
    """Describe the import caches that this plugin offers.

    Called once when plugins are loaded. All answers count.

    Returns:
        Descriptions; a name that another backend of any kind has makes the later plugin broken.
    """
    raise NotImplementedError


@hookspec
def ol_base_sources() -> Sequence[BaseSource]:
    """Describe where the root file system of a new cluster's sandboxes can come from, beside folders and tar archives.

    Called once when ``olcore new --base`` is given. All answers count. Import nothing heavy: that belongs into ``open``.

    Returns:
        Descriptions; a scheme that an earlier plugin has makes the later plugin broken.
    """
    raise NotImplementedError


@hookspec
def ol_commands(cli: click.Group) -> None:
    """Add commands to the ``olcore`` program.

    Called once for each run of the program, after its own commands were added. All implementations are called; one
    that raises is reported by ``olcore plugins`` and breaks no command.

    Args:
        cli: The group to add to, with ``cli.add_command``; a name that is taken is refused.
    """


@hookspec
def ol_worker_started(worker: WorkerInfo) -> None:
    """Learn that a worker serves.

    Called once for each worker process, when everything has been made and before the first request. All listeners.

    Args:
        worker: Who it is and where it listens.
    """


@hookspec
def ol_worker_stopping(worker: WorkerInfo) -> None:
    """Learn that a worker stops.

    Called once, when every request has been answered and before its sandboxes go. Not called after a kill -9.

    Args:
        worker: Who it is and where it listened.
    """


@hookspec
def ol_handler_pulled(version: HandlerVersion, seconds: float) -> None:
    """Learn that a version of a handler was put into the worker's code cache.

    Called once for each version pulled. All listeners.

    Args:
        version: What was pulled.
        seconds: How long it took, packages included.
    """


@hookspec
def ol_instance_created(instance: InstanceInfo) -> None:
    """Learn that an instance can serve.

    Called once for each instance, when its handler has been loaded. All listeners.

    Args:
        instance: Which one, and how long its cold start took.
    """


@hookspec
def ol_instance_paused(instance: InstanceInfo) -> None:
    """Learn that an idle instance was frozen.

    Called each time; no event tells that it runs again, its next invocation does. All listeners.

    Args:
        instance: Which one.
    """


@hookspec
def ol_instance_destroyed(instance: InstanceInfo, reason: DestroyReason) -> None:
    """Learn that an instance is gone.

    Called once for each instance for which a sandbox was made, also when it never could serve. All listeners.

    Args:
        instance: Which one.
        reason: Why, and how it died.
    """


@hookspec
def ol_invocation_finished(invocation: Invocation, outcome: Outcome) -> None:
    """Learn how a request ended.

    Called once for each request with a valid handler name, after its reply was handed to the server. All listeners.

    Args:
        invocation: Which request, and what served it.
        outcome: Status, times and sizes.
    """


@hookspec
def ol_memory_pressure(used_mb: int, limit_mb: int) -> None:
    """Learn that the worker's memory pool is full and idle instances are evicted.

    Called before the eviction, at most once a second. All listeners.

    Args:
        used_mb: What the live instances may use together, by their limits.
        limit_mb: The pool's size (``memory_pool_mb``).
    """
