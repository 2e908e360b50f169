"""Takes a request for a handler by name, and answers with the handler's result; the entrance to this package."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import TYPE_CHECKING

import msgspec

from olcore.errors import (
    BadNameError,
    DrainingError,
    EventTooLargeError,
    HandlerError,
    HandlerNotFoundError,
    InstanceDiedError,
    InstanceTimeoutError,
    OlcoreError,
    RequestError,
    SandboxError,
)
from olcore.handlers.code import CodeCache, PackageInstaller
from olcore.handlers.handler import Handler
from olcore.handlers.memory import MemoryPool
from olcore.handlers.options import MIB, Options
from olcore.handlers.parts import Parts
from olcore.handlers.snapshots import Snapshots
from olcore.handlers.upkeep import Upkeep
from olcore.interfaces import HandlerVersion, Invocation, Outcome, ZygotePool

if TYPE_CHECKING:
    from collections.abc import Callable

    from olcore.cluster import WorkerDir
    from olcore.handlers.instance import Instance
    from olcore.interfaces import ImportCache, Registry, SandboxPool, Scheduler

__all__ = ["Manager", "Options", "PackageInstaller", "Reply", "check_name"]

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_RETRIES = 3
_STATUS_CANCELLED = 499  # what proxies log when the caller went away; nobody is sent it


class Reply(msgspec.Struct, frozen=True, gc=False):
    """A handler's answer."""

    result: bytes
    """JSON."""
    invocation: Invocation
    outcome: Outcome


def check_name(name: str) -> None:
    """Refuse what no handler can be called, before it reaches any path.

    Raises:
        BadNameError: Says what names look like.
    """
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise BadNameError(
            f"{name[:140]!r} is no name of a handler",
            hint="letters, digits, '.', '_' and '-', at most 128 of them, and not '.' or '..'",
        )


class _Call:
    """What is known about one request while it runs, for the event at its end."""

    __slots__ = (
        "arrived_s",
        "body_bytes",
        "handler",
        "instance",
        "is_cold",
        "request_id",
        "retries",
        "taken_s",
    )

    def __init__(self, request_id: str, body_bytes: int) -> None:
        self.request_id = request_id
        self.body_bytes = body_bytes
        self.arrived_s = time.monotonic()
        self.taken_s = 0.0
        self.handler: Handler | None = None
        self.instance: Instance | None = None
        self.is_cold = False
        self.retries = 0


class Manager:
    """Every handler of one worker.

    The parts that it is given have been started, and are closed after it by whoever made them.

    Args:
        pool: Makes sandboxes.
        registry: Where handlers come from.
        scheduler: Decides where requests go.
        import_cache: Chooses zygotes, if there is one.
        packages: Installs what handlers want, if anything does.
        options: Out of the configuration.
        worker_dir: The worker's own folder.
        emit: Queues an event, ``emit(hook, **arguments)``; it must return at once.
    """

    def __init__(  # noqa: PLR0913  # the parts of a worker, by name
        self,
        *,
        pool: SandboxPool,
        registry: Registry,
        scheduler: Scheduler,
        import_cache: ImportCache | None,
        packages: PackageInstaller | None,
        options: Options,
        worker_dir: WorkerDir,
        emit: Callable[..., None],
    ) -> None:
        self.options = options
        self._handlers: dict[str, Handler] = {}
        self._parts = Parts(
            pool=pool,
            scheduler=scheduler,
            import_cache=import_cache,
            options=options,
            worker_dir=worker_dir,
            emit=emit,
            memory=MemoryPool(options.memory_pool_mb, self._press),
            freed=self._freed,
            idled=self._press,
        )
        if isinstance(pool, ZygotePool):
            self._parts.snapshots = Snapshots(pool, worker_dir.import_cache, self._parts.spawn)
        self._upkeep = Upkeep(self._handlers, self._parts)
        self._codes = CodeCache(registry, packages, options, worker_dir.code, self._pulled)
        self._emit = emit
        self._finished: list[tuple[Invocation, Outcome]] = []
        self._in_flight = 0
        self._is_draining = False
        self._emptied: asyncio.Event | None = None

    async def start(self) -> None:
        """Clear what a crash left in the worker's folder, and begin to look after idle instances."""
        self._codes.start()
        handlers = self._parts.worker_dir.handlers
        handlers.mkdir(parents=True, exist_ok=True)
        for left in handlers.glob("*/*"):
            await self._parts.pool.remove_scratch(left)
        self._upkeep.start()

    async def close(self, drain_s: float) -> None:
        """Refuse new requests, wait up to *drain_s* for those in flight, then destroy every instance; idempotent."""
        self._is_draining = True
        if self._in_flight and drain_s > 0:
            self._emptied = self._emptied or asyncio.Event()
            try:
                async with asyncio.timeout(drain_s):
                    await self._emptied.wait()
            except TimeoutError:
                log.warning("%d requests were still running after %g s", self._in_flight, drain_s)
        await self._upkeep.close()
        self._parts.is_closing = True
        for handler in self._handlers.values():
            handler.close(_draining)
        await self._codes.close()
        if self._parts.snapshots is not None:
            self._parts.snapshots.stop()
        await self._parts.settle()
        if self._parts.snapshots is not None:
            await self._parts.snapshots.close()
        self._tell_finished()

    async def invoke(self, name: str, body: bytes, request_id: str) -> Reply:
        """Let the newest code of handler *name* answer.

        Args:
            name: From the request, unchecked.
            body: The event as JSON; no bytes at all stand for ``{}``.
            request_id: For the events.

        Raises:
            OlcoreError: Any of the request's, the handler's, the sandbox's or the registry's; ``details`` names the handler.
        """
        if self._is_draining:
            raise _draining()
        if name not in self._handlers:
            check_name(name)
        call = _Call(request_id, len(body))
        self._in_flight += 1
        try:
            result = await self._answer(name, body, call)
        except OlcoreError as error:
            error.details.setdefault("handler", name)
            self._finish(name, call, error.status, error.code, 0)
            raise
        except asyncio.CancelledError:
            self._finish(name, call, _STATUS_CANCELLED, "cancelled", 0)
            raise
        else:
            invocation, outcome = self._finish(name, call, 200, "ok", len(result))
            return Reply(result, invocation, outcome)
        finally:
            self._in_flight -= 1
            if self._emptied is not None and not self._in_flight:
                self._emptied.set()

    def describe(self) -> list[dict[str, object]]:
        """Describe every live instance, for people and for ``GET /instances``."""
        now_s = time.monotonic()
        return [
            {
                "id": instance.id,
                "handler": handler.name,
                "version": instance.code.version.version,
                "state": instance.condition,
                "idle_s": round(now_s - instance.view.idle_since_s, 3)
                if instance.id in handler.idle
                else 0.0,
                "served": instance.served,
                "cold_start_ms": round(instance.cold_start_s * 1e3, 3),
                "memory_mb": instance.memory_mb,
                "network": instance.code.settings.network.value,
            }
            for handler in self._handlers.values()
            for instance in handler.instances.values()
        ]

    def zygotes(self) -> list[dict[str, object]]:
        """Describe what the import cache keeps; nothing where there is none."""
        cache = self._parts.import_cache
        return list(cache.describe()) if cache is not None else []

    @property
    def stale_served(self) -> int:
        """How many requests got code that the registry, being away, could not confirm."""
        return self._codes.stale_served

    def deaths(self) -> list[dict[str, object]]:
        """Tell how the last instances ended, the newest last."""
        return list(self._parts.deaths)

    async def _answer(self, name: str, body: bytes, call: _Call) -> bytes:
        handler = self._handlers.get(name)
        if handler is None or handler.code is not self._codes.at_hand(name):
            handler = await self._handler(name)
        call.handler = handler
        max_body_bytes = handler.code.settings.limits.max_body_mb * MIB
        if len(body) > max_body_bytes:
            raise EventTooLargeError(
                f"the body has {len(body)} bytes, over the limit of {int(max_body_bytes)}",
                hint="raise limits.max_body_mb",
            )
        while True:
            instance = call.instance = await handler.acquire(call.arrived_s)
            call.is_cold = not instance.served
            call.taken_s = time.monotonic()
            try:
                return await self._called(handler, instance, body, call)
            except InstanceDiedError:
                # It had died while it was idle, a moment before it was taken; the handler saw nothing of this event.
                if not instance.channel.is_unread or call.retries == _RETRIES:
                    raise
                call.retries += 1

    async def _called(
        self, handler: Handler, instance: Instance, body: bytes, call: _Call
    ) -> bytes:
        try:
            result = await instance.channel.call(body, instance.timeout_s)
        except (HandlerError, RequestError):
            handler.release(instance, time.monotonic() - call.taken_s)
            raise
        except InstanceTimeoutError:
            handler.end(instance, "timeout")
            raise
        except InstanceDiedError as error:
            try:
                raise await self._death_of(instance) from error
            finally:
                handler.end(instance, "died")
        except SandboxError:
            handler.end(instance, "died")
            raise
        except BaseException:
            # The caller is gone and the guest still runs: its answer must not reach the next caller.
            handler.end(instance, "abandoned")
            raise
        handler.release(instance, time.monotonic() - call.taken_s)
        return result

    async def _handler(self, name: str) -> Handler:
        """Find the handler, on its newest code."""
        try:
            code = await self._codes.current(name)
        except HandlerNotFoundError:
            self._vanished(name)
            raise
        except asyncio.CancelledError:
            if self._parts.is_closing:
                raise _draining() from None
            raise
        handler = self._handlers.get(name)
        if handler is None:
            handler = self._handlers[name] = Handler(code, self._parts)
        elif handler.code is not code:
            handler.update(code)
            self._freed(name)
        return handler

    async def _death_of(self, instance: Instance) -> OlcoreError:
        if self._parts.is_closing:
            return _draining()
        return await instance.died()

    def _vanished(self, name: str) -> None:
        handler = self._handlers.get(name)
        if handler is not None:
            for instance in list(handler.idle.values()):
                handler.end(instance, "replaced")
            self._freed(name)
        else:
            # An earlier run may have left its code, which must not be served when the registry is away.
            self._codes.tidy(name, frozenset())

    def _freed(self, name: str) -> None:
        """Let the code cache drop versions that nothing serves any more."""
        handler = self._handlers.get(name)
        if handler is not None and not self._parts.is_closing:
            self._codes.tidy(name, handler.versions)

    def _pulled(self, version: HandlerVersion, seconds: float) -> None:
        self._emit("ol_handler_pulled", version=version, seconds=seconds)

    def _finish(
        self, name: str, call: _Call, status: int, code: str, result_bytes: int
    ) -> tuple[Invocation, Outcome]:
        now_s = time.monotonic()
        instance = call.instance
        taken_s = call.taken_s or now_s
        if instance is not None:
            served = instance.code.version.version
        else:
            served = call.handler.code.version.version if call.handler is not None else ""
        invocation = Invocation(
            request_id=call.request_id,
            handler=name,
            version=served,
            instance=instance.id if instance is not None else "",
            cold=call.is_cold,
        )
        outcome = Outcome(
            status=status,
            code=code,
            waited_s=taken_s - call.arrived_s,
            ran_s=now_s - taken_s,
            body_bytes=call.body_bytes,
            result_bytes=result_bytes,
        )
        # Told once this turn of the loop is over: by then the reply has been written.
        if not self._finished:
            asyncio.get_running_loop().call_soon(self._tell_finished)
        self._finished.append((invocation, outcome))
        return invocation, outcome

    def _press(self) -> None:
        self._upkeep.press()

    def _tell_finished(self) -> None:
        finished, self._finished = self._finished, []
        for invocation, outcome in finished:
            self._emit("ol_invocation_finished", invocation=invocation, outcome=outcome)


def _draining() -> DrainingError:
    return DrainingError("the worker is stopping", retry_after_s=1.0)
