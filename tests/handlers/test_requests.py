"""One request at a time: what a caller gets."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from olcore.errors import (
    BadEventError,
    BadNameError,
    DrainingError,
    EventTooLargeError,
    HandlerInvalidError,
    HandlerLoadError,
    HandlerNotFoundError,
    HandlerRaisedError,
    InstanceDiedError,
    InstanceTimeoutError,
    OlcoreError,
    ResultError,
    SandboxUnavailableError,
)
from olcore.handlers.manager import check_name

if TYPE_CHECKING:
    from tests.handlers.conftest import House


async def test_a_handler_answers_cold_and_then_warm(house: House) -> None:
    version = house.put_hello()
    await house.open()
    cold = await house.reply("hello", {"name": "Alice"})
    warm = await house.reply("hello", {"name": "Bob"})
    assert [cold.result, warm.result] == [b'"Hello, Alice!"', b'"Hello, Bob!"']
    assert [cold.invocation.cold, warm.invocation.cold] == [True, False]
    assert cold.invocation.instance == warm.invocation.instance == "1"
    assert warm.invocation.version == version
    assert warm.outcome.status == 200
    assert warm.outcome.result_bytes == len(warm.result)


async def test_an_empty_body_is_an_empty_object(house: House) -> None:
    house.registry.put("echo", "def handler(event):\n    return event\n")
    await house.open()
    assert await house.call("echo") == {}


async def test_large_bodies_and_results_pass_untouched(house: House) -> None:
    house.registry.put("echo", "def handler(event):\n    return event\n")
    await house.open()
    text = "ü" * 1_000_000
    assert await house.call("echo", text) == text


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a b", "ä", "a\n", "../hello", "x" * 129, "a\0b"]
)
def test_what_no_handler_can_be_called_is_refused(name: str) -> None:
    with pytest.raises(BadNameError, match="is no name of a handler"):
        check_name(name)


@pytest.mark.parametrize("name", ["hello", "a.b", "...", "-", "_", "9", "x" * 128])
def test_every_other_name_is_taken(name: str) -> None:
    check_name(name)


async def test_a_bad_name_reaches_no_registry_and_no_path(house: House) -> None:
    await house.open()
    with pytest.raises(BadNameError):
        await house.call("../../etc")
    assert house.registry.lookups == 0
    assert house.told("ol_invocation_finished") == []


async def test_an_unknown_handler_is_not_found_however_often_it_is_asked_for(house: House) -> None:
    await house.open()
    for _ in range(3):
        with pytest.raises(HandlerNotFoundError) as caught:
            await house.call("nobody")
        assert caught.value.details["handler"] == "nobody"


async def test_a_handler_that_raises_is_told_with_type_and_traceback_and_goes_on(
    house: House,
) -> None:
    house.registry.put(
        "divide", "def handler(event):\n    return event['a'] / event['b']  # the line\n"
    )
    await house.open()
    with pytest.raises(HandlerRaisedError) as caught:
        await house.call("divide", {"a": 1, "b": 0})
    assert caught.value.message == "ZeroDivisionError: division by zero"
    assert caught.value.details["type"] == "ZeroDivisionError"
    assert "# the line" in str(caught.value.details["traceback"])
    assert await house.call("divide", {"a": 1, "b": 2}) == 0.5
    assert len(house.told("ol_instance_created")) == 1


async def test_a_body_that_is_no_json_is_refused_with_its_position(house: House) -> None:
    house.put_hello()
    manager = await house.open()
    with pytest.raises(BadEventError) as caught:
        await manager.invoke("hello", b'{"name": nonsense}', "r1")
    assert caught.value.details["position"] == 9
    assert await house.call("hello", {"name": "Bob"}) == "Hello, Bob!"


async def test_a_result_that_is_no_json_is_an_error_of_the_handler(house: House) -> None:
    house.registry.put("odd", "def handler(event):\n    return {1, 2}\n")
    await house.open()
    with pytest.raises(ResultError, match="cannot be written as JSON"):
        await house.call("odd")


async def test_a_result_over_the_limit_is_an_error_of_the_handler(house: House) -> None:
    settings = "[limits]\nmax_result_mb = 0.001\n"
    house.registry.put(
        "big",
        {
            "lambda_func.py": "def handler(event):\n    return 'x' * event\n",
            "olcore.toml": settings,
        },
    )
    await house.open()
    assert await house.call("big", 1000) == "x" * 1000
    with pytest.raises(ResultError, match="over the limit"):
        await house.call("big", 2000)


async def test_a_body_over_the_handlers_limit_is_refused_before_an_instance_is_made(
    house: House,
) -> None:
    house.registry.put(
        "small",
        {
            "lambda_func.py": "def handler(event):\n    return 1\n",
            "olcore.toml": "[limits]\nmax_body_mb = 0.001\n",
        },
    )
    manager = await house.open()
    with pytest.raises(EventTooLargeError, match="2002 bytes, over the limit of 1048"):
        await manager.invoke("small", json.dumps("x" * 2000).encode(), "r1")
    assert house.pool.specs == []


async def test_a_handler_that_cannot_be_imported_answers_with_its_own_traceback(
    house: House,
) -> None:
    house.registry.put("broken", "import this_is_nowhere\n")
    await house.open()
    with pytest.raises(HandlerLoadError) as caught:
        await house.call("broken")
    assert caught.value.details["type"] == "ModuleNotFoundError"
    assert "import this_is_nowhere" in str(caught.value.details["traceback"])
    assert await house.ended() == ["load_failed"]


async def test_after_a_failed_import_the_next_request_tries_the_newest_code(house: House) -> None:
    house.registry.put("hello", "raise RuntimeError('not yet')\n")
    await house.open()
    with pytest.raises(HandlerLoadError):
        await house.call("hello")
    house.put_hello()
    assert await house.call("hello", {"name": "Bob"}) == "Hello, Bob!"


async def test_a_folder_without_an_entry_file_is_no_handler(house: House) -> None:
    house.registry.put("empty", {"readme.txt": "nothing here"})
    await house.open()
    with pytest.raises(HandlerInvalidError, match=r"no lambda_func.py .* or f.py"):
        await house.call("empty")
    assert house.pool.specs == []


async def test_an_entry_file_without_its_function_is_no_handler(house: House) -> None:
    house.registry.put("empty", "x = 1\n")
    await house.open()
    with pytest.raises(HandlerInvalidError, match="no function 'handler'"):
        await house.call("empty")


async def test_openlambdas_newer_form_is_served(house: House) -> None:
    house.registry.put("newer", {"f.py": "def f(event):\n    return 'f'\n"})
    await house.open()
    assert await house.call("newer") == "f"


async def test_a_handler_gets_its_environment_and_no_other(house: House) -> None:
    house.registry.put(
        "env",
        {
            "main.py": "import os\ndef run(event):\n    return dict(os.environ)\n",
            "olcore.toml": 'entry = "main.py:run"\n[environment]\nCOLOUR = "blue"\n',
        },
    )
    await house.open()
    assert await house.call("env") == {"COLOUR": "blue"}


async def test_a_handler_that_runs_past_its_limit_is_destroyed_though_it_spins(
    house: House,
) -> None:
    house.registry.put(
        "spin",
        {
            "lambda_func.py": (
                "import signal\n"
                "def handler(event):\n"
                "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
                "    while event:\n        pass\n"
            ),
            "olcore.toml": "[limits]\ntimeout_s = 0.2\n",
        },
    )
    await house.open()
    with pytest.raises(InstanceTimeoutError, match=r"its limit of 0.2 s") as caught:
        await house.call("spin", 1)
    assert caught.value.details["limit_s"] == 0.2
    assert await house.ended() == ["timeout"]
    assert await house.call("spin", 0) is None
    assert house.told("ol_invocation_finished")[0]["outcome"].status == 504


async def test_a_handler_that_loads_for_too_long_is_stopped(house: House) -> None:
    house.registry.put(
        "slow",
        {
            "lambda_func.py": "while True:\n    pass\n",
            "olcore.toml": "[limits]\ntimeout_s = 0.2\n",
        },
    )
    await house.open()
    with pytest.raises(InstanceTimeoutError, match="loading took longer"):
        await house.call("slow")
    assert await house.ended() == ["timeout"]


@pytest.mark.parametrize(
    ("deed", "said", "death"),
    [
        ("os._exit(3)", "exited with code 3", {"cause": "exited", "exit_code": 3}),
        (
            "os.kill(os.getpid(), 11)",
            "killed by SIGSEGV",
            {"cause": "signaled", "signal": "SIGSEGV"},
        ),
    ],
)
async def test_an_instance_that_dies_in_a_call_says_how(
    house: House, deed: str, said: str, death: dict[str, object]
) -> None:
    house.registry.put("dies", f"import os\ndef handler(event):\n    {deed}\n")
    await house.open()
    with pytest.raises(InstanceDiedError) as caught:
        await house.call("dies")
    assert caught.value.message == f"instance 1 of 'dies' died: {said}"
    assert caught.value.details["death"] == death | {"message": said}
    assert await house.ended() == ["died"]
    assert house.manager.deaths()[0]["message"] == said


async def test_an_instance_that_dies_while_it_loads_says_how_and_shows_its_stderr(
    house: House,
) -> None:
    house.registry.put(
        "dies", "import os, sys\nprint('so long', file=sys.stderr, flush=True)\nos._exit(4)\n"
    )
    await house.open()
    with pytest.raises(InstanceDiedError, match="while it loaded its handler: exited") as caught:
        await house.call("dies")
    assert caught.value.details["stderr"] == "so long"


async def test_a_guest_that_ends_its_connection_and_lives_on_is_destroyed(house: House) -> None:
    house.registry.put(
        "mute",
        "import os, time\ndef handler(event):\n    os.closerange(3, 100)\n    time.sleep(60)\n",
    )
    await house.open()
    with pytest.raises(InstanceDiedError, match="ended its connection"):
        await house.call("mute")
    assert await house.ended() == ["died"]


async def test_a_guest_that_sends_what_nobody_asked_for_is_destroyed(house: House) -> None:
    source = """
import os, socket
def handler(event):
    for fd in range(3, 20):
        try:
            os.write(fd, b"\\0" * 64)
        except OSError:
            pass
    return 1
"""
    house.registry.put("forger", source)
    await house.open()
    with pytest.raises(OlcoreError) as caught:
        await house.call("forger")
    assert caught.value.status == 502
    await house.ended()


async def test_a_sandbox_that_cannot_be_made_fails_the_request_with_the_backends_reason(
    house: House,
) -> None:
    house.put_hello()
    await house.open()
    house.pool.refuse = SandboxUnavailableError("the engine is away")
    with pytest.raises(SandboxUnavailableError, match="the engine is away"):
        await house.call("hello")
    house.pool.refuse = None
    assert await house.call("hello", {"name": "Bob"}) == "Hello, Bob!"


async def test_a_backends_bug_fails_the_request_and_hangs_nobody(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.put_hello()
    await house.open()
    house.pool.refuse = ZeroDivisionError("a bug")  # type: ignore[assignment]
    with pytest.raises(OlcoreError, match="see the log"):
        await house.call("hello")
    assert "a bug" in caplog.text


async def test_every_request_is_told_once_it_has_been_answered(house: House) -> None:
    house.put_hello()
    await house.open()
    reply = await house.reply("hello", {"name": "Bob"})
    assert house.told("ol_invocation_finished") == []
    await house.turns()
    assert house.told("ol_invocation_finished") == [
        {"invocation": reply.invocation, "outcome": reply.outcome}
    ]


async def test_a_closed_manager_refuses_and_closing_twice_is_closing_once(house: House) -> None:
    house.put_hello()
    manager = await house.open()
    await house.call("hello")
    await manager.close(1.0)
    await manager.close(1.0)
    with pytest.raises(DrainingError):
        await house.call("hello")
    assert await house.ended() == ["stopping"]
    assert manager.describe() == []


async def test_a_deep_folder_is_no_trouble_though_a_sockets_path_is_short(house: House) -> None:
    name = "x" * 128
    house.registry.put(name, "def handler(event):\n    return 1\n")
    await house.open()
    assert len(str(house.worker_dir.handlers / name)) > 108
    assert await house.call(name) == 1


async def test_what_a_crash_left_is_cleared_at_the_start(house: House) -> None:
    left = house.worker_dir.handlers / "hello" / "7"
    left.mkdir(parents=True)
    (left / "stdout").write_text("old")
    pulling = house.worker_dir.code / "~pull-abc"
    pulling.mkdir(parents=True)
    house.put_hello()
    await house.open()
    assert not left.exists()
    assert not pulling.exists()
    assert await house.call("hello", {"name": "Bob"}) == "Hello, Bob!"


async def test_a_cancelled_caller_leaves_no_answer_for_the_next(house: House) -> None:
    house.registry.put(
        "slow",
        "import time\ndef handler(event):\n    time.sleep(event)\n    return event\n",
    )
    await house.open()
    assert await house.call("slow", 0) == 0
    task = house.begin("slow", 30)
    await house.turns()
    assert house.states() == ["busy"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await house.call("slow", 0) == 0
    assert await house.ended() == ["abandoned"]
    assert house.told("ol_invocation_finished")[1]["outcome"].code == "cancelled"
