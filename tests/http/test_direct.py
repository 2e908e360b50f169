"""Plain calls that are answered ahead of ASGI get what Falcon would have answered."""

from __future__ import annotations

import json
import logging
from typing import Any

import falcon.testing
import pytest

from olcore.errors import HandlerRaisedError, QueueFullError
from olcore.http import App, Gate, HttpOptions, make_app
from olcore.http.direct import Answer, Direct
from tests.http.conftest import INFO, Echo

CALL = "/run/hello"


@pytest.fixture
def app(echo: Echo, gate: Gate) -> App:
    manager: Any = echo
    return make_app(manager, INFO, gate, HttpOptions(max_body_mb=1.0))


@pytest.fixture
def direct(app: App) -> Direct:
    assert app.direct is not None
    return app.direct


def headers_of(answer: Answer) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in answer.headers}


@pytest.mark.parametrize("path", ["/run/hello", "/runLambda/hello", "/runLambda/hello/more"])
def test_plain_call_is_taken_under_every_spelling(direct: Direct, path: str) -> None:
    assert direct.name_of("POST", path, 1 << 20) == "hello"


def test_whatever_is_no_plain_call_is_left_to_falcon(direct: Direct, gate: Gate) -> None:
    assert direct.name_of("POST", CALL, (1 << 20) + 1) is None
    assert direct.name_of("GET", CALL, 0) is None
    assert direct.name_of("OPTIONS", CALL, 0) is None
    assert direct.name_of("POST", "/status", 0) is None
    assert direct.name_of("POST", "/", 0) is None
    gate.close()
    assert direct.name_of("POST", CALL, 0) is None


def test_with_cors_every_call_is_falcons(echo: Echo, gate: Gate) -> None:
    manager: Any = echo
    assert make_app(manager, INFO, gate, HttpOptions(max_body_mb=1.0, cors=True)).direct is None


async def test_body_goes_in_and_the_result_out_untouched(direct: Direct, echo: Echo) -> None:
    answer = await direct.answer("hello", b"not json \xff", [(b"x-request-id", b"mine.1")])
    assert answer.status == 200
    assert answer.body == b"not json \xff"
    assert echo.calls == [("hello", b"not json \xff", "mine.1")]
    assert headers_of(answer) == {
        "content-type": "application/json",
        "content-length": "10",
        "x-request-id": "mine.1",
        "server-timing": "queue;dur=2.000, run;dur=1.500, cold",
    }


async def test_request_without_a_sane_id_gets_one(direct: Direct, echo: Echo) -> None:
    first = await direct.answer("hello", b"1", [(b"x-request-id", b"a b")])
    second = await direct.answer("hello", b"1", [])
    ids = [headers_of(answer)["x-request-id"] for answer in (first, second)]
    assert ids == [call[2] for call in echo.calls]
    assert len({*ids, "a b"}) == 3


@pytest.mark.parametrize(
    "error",
    [
        HandlerRaisedError("it raised", details={"type": "KeyError", "code": "mine"}, hint="mend"),
        QueueFullError("full", retry_after_s=0.2),
        ZeroDivisionError("secret of the worker"),
    ],
)
async def test_error_is_told_as_falcon_tells_it(app: App, echo: Echo, error: Exception) -> None:
    echo.error = error
    assert app.direct is not None
    answer = await app.direct.answer("hello", b"1", [(b"x-request-id", b"r1")])
    async with falcon.testing.ASGIConductor(app.asgi) as conductor:
        asked = {"X-Request-Id": "r1"}
        reply = await conductor.simulate_post(CALL, body=b"1", headers=asked)
    assert (answer.status, json.loads(answer.body)) == (reply.status_code, reply.json)
    mine = headers_of(answer)
    assert mine.pop("server-timing").startswith("total;dur=")
    assert mine == {name: reply.headers[name] for name in mine}
    assert mine.keys() | {"server-timing"} == {name.lower() for name in reply.headers}


async def test_bug_keeps_its_traceback_to_the_log(
    direct: Direct, echo: Echo, caplog: pytest.LogCaptureFixture
) -> None:
    echo.error = ZeroDivisionError("secret of the worker")
    answer = await direct.answer("hello", b"1", [(b"x-request-id", b"r2")])
    assert b"secret" not in answer.body
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "r2" in record.message
    assert record.exc_info is not None
