"""Plugins: each loads on its own, keeps the rules, and hears what happens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from olcore import hookimpl
from olcore.config import Config, check
from olcore.errors import BackendUnusableError, PluginNotFoundError
from olcore.interfaces import (
    Death,
    DeathCause,
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
from olcore.plugins import Plugins
from tools.reference_docs import hook_names


class Settings(msgspec.Struct, frozen=True):
    """Of every backend here."""

    size: int = 1
    why: str = ""


def refuse_to_make(*_: object) -> Any:
    raise AssertionError("a backend is described, not made")


def sandbox(name: str, **more: Any) -> SandboxBackend[Any]:
    return SandboxBackend(
        **{"name": name, "summary": "s", "settings": Settings, "make": refuse_to_make, **more}
    )


def offering(*backends: Any, hook: str = "ol_sandbox_backends") -> SimpleNamespace:
    def offer() -> Sequence[Any]:
        return backends

    offer.__name__ = hook
    return SimpleNamespace(**{hook: hookimpl(offer)})


def error_of(plugins: Plugins, name: str) -> str | None:
    return next(each.error for each in plugins.listed() if each.plugin == name)


@pytest.mark.parametrize(
    ("hook", "described", "kind"),
    [
        ("ol_sandbox_backends", SandboxBackend, "sandbox"),
        ("ol_registry_backends", RegistryBackend, "registry"),
        ("ol_scheduler_backends", SchedulerBackend, "scheduler"),
        ("ol_import_cache_backends", ImportCacheBackend, "import_cache"),
    ],
)
def test_a_backend_of_each_kind_is_found_by_its_name(hook: str, described: Any, kind: str) -> None:
    backend = described(name="mine", summary="s", settings=Settings, make=refuse_to_make)
    plugins = Plugins()
    plugins.add("p", offering(backend, hook=hook))
    assert error_of(plugins, "p") is None
    assert getattr(plugins, kind)("mine") is backend
    assert plugins.sections() == {"mine": Settings}


def test_a_plugin_that_cannot_be_imported_is_kept_with_its_error_and_stops_no_other() -> None:
    plugins = Plugins()
    plugins.add_entry_point(EntryPoint("broken", "no_such_module_of_ours", "olcore"))
    plugins.add("whole", offering(sandbox("mine")))
    assert error_of(plugins, "broken") == (
        "ModuleNotFoundError: No module named 'no_such_module_of_ours'"
    )
    assert plugins.sandbox("mine").name == "mine"


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        (sandbox("Upper"), "'Upper' is no name for a backend"),
        (sandbox("../x"), "'../x' is no name for a backend"),
        (sandbox("limits"), "the backend name 'limits' is a key of olcore's configuration"),
        (sandbox("x", settings=dict), "the settings of 'x' are no msgspec struct"),
        (
            sandbox("x", settings=msgspec.defstruct("Needy", [("url", str)])),
            "a setting of 'x' has no default",
        ),
        ("sock", "ol_sandbox_backends answered 'sock', not a SandboxBackend"),
    ],
)
def test_a_description_that_breaks_a_rule_makes_its_plugin_broken(backend: Any, said: str) -> None:
    plugins = Plugins()
    plugins.add("p", offering(sandbox("fine"), backend))
    assert said in str(error_of(plugins, "p"))
    # All of it: half a plugin would surprise more.
    assert plugins.sections() == {}


def test_a_name_that_is_taken_makes_the_later_plugin_broken_whatever_the_kind() -> None:
    plugins = Plugins()
    plugins.add("first", offering(sandbox("mine")))
    backend = RegistryBackend(name="mine", summary="s", settings=Settings, make=refuse_to_make)
    plugins.add("second", offering(backend, hook="ol_registry_backends"))
    assert error_of(plugins, "first") is None
    assert error_of(plugins, "second") == "the backend name 'mine' is taken by the plugin 'first'"


def test_two_backends_of_one_plugin_cannot_have_one_name() -> None:
    plugins = Plugins()
    plugins.add("p", offering(sandbox("mine"), sandbox("mine")))
    assert "'mine' is taken by the plugin 'p'" in str(error_of(plugins, "p"))


def test_a_registration_that_raises_makes_its_plugin_broken() -> None:
    @hookimpl
    def ol_sandbox_backends() -> Sequence[Any]:
        raise ZeroDivisionError("one by none")

    plugins = Plugins()
    plugins.add("p", SimpleNamespace(ol_sandbox_backends=ol_sandbox_backends))
    assert error_of(plugins, "p") == "ZeroDivisionError: one by none"


def test_an_async_implementation_is_refused_for_nobody_would_await_it() -> None:
    @hookimpl
    async def ol_worker_started(worker: WorkerInfo) -> None: ...

    plugins = Plugins()
    plugins.add("p", SimpleNamespace(ol_worker_started=ol_worker_started))
    assert error_of(plugins, "p") == "ol_worker_started is async; hooks are plain functions"
    assert plugins.implementations("ol_worker_started") == ()


def test_a_hook_that_olcore_has_not_is_refused_with_the_nearest() -> None:
    @hookimpl
    def ol_instance_create(instance: InstanceInfo) -> None: ...

    plugins = Plugins()
    plugins.add("p", SimpleNamespace(ol_instance_create=ol_instance_create))
    assert error_of(plugins, "p") == (
        "olcore has no hook 'ol_instance_create'; did you mean ol_instance_created?"
    )


def test_a_hook_that_is_not_marked_is_refused_for_it_would_never_be_called() -> None:
    plugins = Plugins()
    plugins.add("p", SimpleNamespace(ol_worker_started=lambda worker: None))
    assert error_of(plugins, "p") == "ol_worker_started lacks @olcore.hookimpl"


def test_an_argument_that_a_hook_has_not_is_refused() -> None:
    @hookimpl
    def ol_worker_started(worker: WorkerInfo, colour: str) -> None:
        del colour

    plugins = Plugins()
    plugins.add("p", SimpleNamespace(ol_worker_started=ol_worker_started))
    assert "colour" in str(error_of(plugins, "p"))


def test_a_wrapper_is_refused_for_implementations_are_called_one_at_a_time() -> None:
    @hookimpl(wrapper=True)
    def ol_worker_started(worker: WorkerInfo) -> Any:
        yield

    plugins = Plugins()
    plugins.add("p", SimpleNamespace(ol_worker_started=ol_worker_started))
    assert "ol_worker_started is a wrapper" in str(error_of(plugins, "p"))


def test_a_backend_that_nobody_offers_is_answered_with_what_is_and_how_to_get_it() -> None:
    plugins = Plugins()
    plugins.add("p", offering(sandbox("one"), sandbox("another")))
    with pytest.raises(PluginNotFoundError) as caught:
        plugins.sandbox("vm")
    assert caught.value.message == "no plugin offers the sandbox 'vm'; installed: another, one"
    assert caught.value.hint == "pip install ol-sandbox-vm"
    with pytest.raises(PluginNotFoundError, match="'one' is a sandbox, not a registry"):
        plugins.registry("one")
    with pytest.raises(PluginNotFoundError) as caught:
        plugins.import_cache("tree")
    assert caught.value.hint == "pip install ol-cache-tree"


def test_a_backend_that_cannot_run_here_says_why_with_the_settings_given() -> None:
    plugins = Plugins()
    unusable = sandbox("vm", why_unusable=lambda settings: settings.why or None)
    plugins.add("p", offering(unusable))
    for kind, described in (
        ("registry", RegistryBackend),
        ("scheduler", SchedulerBackend),
    ):
        backend: Any = described(
            name=f"a-{kind}", summary="s", settings=Settings, make=refuse_to_make
        )
        plugins.add(kind, offering(backend, hook=f"ol_{kind}_backends"))
    raw: dict[str, Any] = {"sandbox": "vm", "registry": "a-registry", "scheduler": "a-scheduler"}
    plugins.require_usable(check(raw, plugins.sections()))
    raw["vm"] = {"why": "no /dev/kvm"}
    with pytest.raises(BackendUnusableError, match="the sandbox 'vm' cannot run here: no /dev/kvm"):
        plugins.require_usable(check(raw, plugins.sections()))


def test_a_backend_that_cannot_tell_whether_it_can_run_breaks_nothing() -> None:
    plugins = Plugins()
    plugins.add("p", offering(sandbox("vm", why_unusable=lambda settings: 1 / 0)))
    status = plugins.listed()[0].backends[0]
    assert status.why_unusable == "why_unusable failed: ZeroDivisionError: division by zero"


WORKER = WorkerInfo(cluster_name="c", worker_name="w", url="u", sandbox="s", registry="r")
INSTANCE = InstanceInfo(id="1", handler="h", version="v", cold_start_s=0.1)
EVENTS: dict[str, dict[str, Any]] = {
    "ol_worker_started": {"worker": WORKER},
    "ol_worker_stopping": {"worker": WORKER},
    "ol_handler_pulled": {"version": HandlerVersion(name="h", version="v"), "seconds": 0.5},
    "ol_instance_created": {"instance": INSTANCE},
    "ol_instance_paused": {"instance": INSTANCE},
    "ol_instance_destroyed": {
        "instance": INSTANCE,
        "reason": DestroyReason(reason="idle", death=Death(cause=DeathCause.DESTROYED)),
    },
    "ol_invocation_finished": {
        "invocation": Invocation(request_id="r", handler="h", version="v", instance="1", cold=True),
        "outcome": Outcome(
            status=200, code="ok", waited_s=0.1, ran_s=0.2, body_bytes=2, result_bytes=3
        ),
    },
    "ol_memory_pressure": {"used_mb": 1, "limit_mb": 2},
}


def test_every_event_is_known_here() -> None:
    offers = ("_backends", "_sources", "_commands")
    others = {name for name in hook_names() if name.endswith(offers)}
    assert set(EVENTS) | others == set(hook_names())


@pytest.mark.parametrize("hook", EVENTS)
async def test_a_listener_is_told_what_it_asks_for(hook: str) -> None:
    heard: list[dict[str, Any]] = []
    arguments = ", ".join(EVENTS[hook])
    scope: dict[str, Any] = {"heard": heard}
    # Each hook has arguments of its own, by which pluggy knows them.
    exec(f"def {hook}({arguments}): heard.append(locals())", scope)
    plugins = Plugins()
    plugins.add("p", SimpleNamespace(**{hook: hookimpl(scope[hook])}))
    plugins.emit(hook, **EVENTS[hook])
    plugins.flush()
    assert heard == [EVENTS[hook]]


def listener(heard: list[str], name: str, error: Exception | None = None) -> SimpleNamespace:
    @hookimpl
    def ol_memory_pressure(used_mb: int) -> None:
        heard.append(f"{name} {used_mb}")
        if error:
            raise error

    return SimpleNamespace(ol_memory_pressure=ol_memory_pressure)


async def test_events_come_after_the_callbacks_that_are_ready_in_order() -> None:
    heard: list[str] = []
    plugins = Plugins()
    plugins.add("a", listener(heard, "a"))
    plugins.add("b", listener(heard, "b"))
    asyncio.get_running_loop().call_soon(heard.append, "reply")
    plugins.emit("ol_memory_pressure", used_mb=1, limit_mb=9)
    plugins.emit("ol_memory_pressure", used_mb=2, limit_mb=9)
    assert heard == []
    done = asyncio.Event()
    asyncio.get_running_loop().call_soon(done.set)
    await done.wait()
    assert heard == ["reply", "b 1", "a 1", "b 2", "a 2"]


async def test_a_listener_that_raises_is_logged_by_its_plugins_name_and_stops_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[str] = []
    plugins = Plugins()
    plugins.add("good", listener(heard, "good"))
    # Later added, hence earlier called.
    plugins.add("bad", listener(heard, "bad", ZeroDivisionError("one by none")))
    with caplog.at_level(logging.ERROR):
        plugins.emit("ol_memory_pressure", used_mb=1, limit_mb=9)
        plugins.flush()
    assert heard == ["bad 1", "good 1"]
    assert "the plugin 'bad' failed in ol_memory_pressure" in caplog.text
    assert "one by none" in caplog.text


async def test_an_event_told_by_a_listener_is_delivered_too() -> None:
    heard: list[str] = []
    plugins = Plugins()

    @hookimpl
    def ol_instance_paused(instance: InstanceInfo) -> None:
        plugins.emit("ol_memory_pressure", used_mb=7, limit_mb=9)

    plugins.add("a", SimpleNamespace(ol_instance_paused=ol_instance_paused))
    plugins.add("b", listener(heard, "b"))
    plugins.emit("ol_instance_paused", instance=INSTANCE)
    plugins.flush()
    assert heard == ["b 7"]


def test_hook_calls_are_printed_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    plugins = Plugins(debug=True)
    plugins.add("p", offering(sandbox("mine")))
    assert capsys.readouterr().err == "hook ol_sandbox_backends() -> p\n"


def test_every_installed_plugin_of_ours_is_whole() -> None:
    plugins = Plugins.load()
    assert {each.plugin: each.error for each in plugins.listed() if each.error} == {}
    core = Config()
    assert core.scheduler in [
        backend.name for each in plugins.listed() for backend in each.backends
    ]
