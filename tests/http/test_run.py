"""The path of every invocation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import falcon.testing
import pytest

from olcore.errors import HandlerRaisedError, QueueFullError
from olcore.http import Gate
from tests.http.conftest import Echo

Client = falcon.testing.TestClient


def asgi(client: Client) -> Any:
    return client.app  # typed as WSGI, although it is what the client was made of


@pytest.mark.parametrize(
    "path", ["/run/hello", "/runLambda/hello", "/runLambda/hello/more/parts", "/run/hello/"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
def test_every_method_and_spelling_invokes_the_handler(
    client: Client, echo: Echo, method: str, path: str
) -> None:
    reply = client.simulate_request(method, path, body=b"not json \xff")
    assert (reply.status_code, reply.content) == (200, b"not json \xff")
    assert echo.calls[0][:2] == ("hello", b"not json \xff")
    assert reply.headers["Content-Type"] == "application/json"


def test_no_body_is_passed_on_as_no_bytes(client: Client, echo: Echo) -> None:
    client.simulate_post("/run/hello")
    assert echo.calls[0][1] == b""


def test_no_name_is_the_managers_to_refuse(client: Client, echo: Echo) -> None:
    client.simulate_post("/runLambda/")
    assert echo.calls[0][0] == ""


def test_reply_says_how_long_it_took_and_whether_the_start_was_cold(client: Client) -> None:
    first = client.simulate_post("/run/hello").headers["Server-Timing"]
    second = client.simulate_post("/run/hello").headers["Server-Timing"]
    assert first == "queue;dur=2.000, run;dur=1.500, cold"
    assert second == "queue;dur=2.000, run;dur=1.500"


def test_request_id_of_the_client_comes_back(client: Client, echo: Echo) -> None:
    reply = client.simulate_post("/run/hello", headers={"X-Request-Id": "mine.1"})
    assert reply.headers["X-Request-Id"] == "mine.1"
    assert echo.calls[0][2] == "mine.1"


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, "<script>"])
def test_request_id_that_is_not_sane_is_replaced(client: Client, sent: str) -> None:
    made = client.simulate_post("/run/hello", headers={"X-Request-Id": sent}).headers[
        "X-Request-Id"
    ]
    again = client.simulate_post("/run/hello").headers["X-Request-Id"]
    assert made
    assert len({made, again, sent}) == 3


def test_announced_body_over_the_limit_is_refused(client: Client, echo: Echo) -> None:
    reply = client.simulate_post("/run/hello", body=b"x" * (1 << 20) + b"x")
    assert reply.status_code == 413
    assert reply.json["error"]["code"] == "event_too_large"
    assert "1048577" in reply.json["error"]["message"]
    assert echo.calls == []


def test_body_at_the_limit_is_taken(client: Client) -> None:
    assert client.simulate_post("/run/hello", body=b"x" * (1 << 20)).status_code == 200


async def test_unannounced_body_is_bounded_while_it_is_read(client: Client, echo: Echo) -> None:
    pulled = 0

    async def receive() -> dict[str, object]:
        nonlocal pulled
        pulled += 1
        return {"type": "http.request", "body": b"x" * 65536, "more_body": True}

    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = falcon.testing.create_scope(path="/run/hello", method="POST")
    await asgi(client)(scope, receive, send)
    assert sent[0]["status"] == 413
    assert pulled == 17
    assert echo.calls == []


async def test_body_that_breaks_off_is_not_invoked(client: Client, echo: Echo) -> None:
    events: Iterator[dict[str, object]] = iter(
        [
            {"type": "http.request", "body": b"12", "more_body": True},
            {"type": "http.disconnect"},
        ]
    )

    async def receive() -> dict[str, object]:
        return next(events)

    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = falcon.testing.create_scope(
        path="/run/hello", method="POST", headers={"Content-Length": "4"}
    )
    await asgi(client)(scope, receive, send)
    assert sent[0]["status"] == 400
    assert echo.calls == []


def test_error_on_purpose_becomes_its_status_and_the_one_shape(client: Client, echo: Echo) -> None:
    echo.error = HandlerRaisedError(
        "it raised",
        details={"type": "KeyError", "traceback": "...", "code": "mine"},
        hint="mend it",
    )
    reply = client.simulate_post("/run/hello", headers={"X-Request-Id": "r1"})
    assert reply.status_code == 500
    assert reply.json == {
        "error": {
            "code": "handler_raised",
            "message": "it raised",
            "handler": "hello",
            "request_id": "r1",
            "hint": "mend it",
            "type": "KeyError",
            "traceback": "...",
        }
    }
    assert reply.headers["X-Request-Id"] == "r1"
    assert reply.headers["Server-Timing"].startswith("total;dur=")
    assert reply.headers["Content-Type"] == "application/json"


def test_error_that_passes_says_when_to_come_back(client: Client, echo: Echo) -> None:
    echo.error = QueueFullError("full", retry_after_s=0.2)
    reply = client.simulate_post("/run/hello")
    assert (reply.status_code, reply.headers["Retry-After"]) == (429, "1")


def test_bug_keeps_its_traceback_to_the_log(
    client: Client, echo: Echo, caplog: pytest.LogCaptureFixture
) -> None:
    echo.error = ZeroDivisionError("secret of the worker")
    reply = client.simulate_post("/run/hello", headers={"X-Request-Id": "r2"})
    assert (reply.status_code, reply.json["error"]["code"]) == (500, "internal")
    assert "secret" not in reply.text
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "r2" in record.message
    assert record.exc_info is not None


def test_closed_gate_turns_requests_away(client: Client, echo: Echo, gate: Gate) -> None:
    gate.close()
    reply = client.simulate_post("/run/hello")
    assert (reply.status_code, reply.json["error"]["code"]) == (503, "draining")
    assert reply.headers["Retry-After"] == "1"
    assert echo.calls == []


def test_options_never_invokes(client: Client, echo: Echo) -> None:
    reply = client.simulate_options("/run/hello")
    assert (reply.status_code, reply.json["error"]["code"]) == (405, "method_not_allowed")
    assert "POST" in reply.headers["Allow"]
    assert echo.calls == []


def test_cors_answers_options_and_marks_every_reply(
    make_client: Callable[..., Client], echo: Echo
) -> None:
    client = make_client(cors=True)
    asked = client.simulate_options("/runLambda/hello")
    assert (asked.status_code, asked.content) == (200, b"")
    assert echo.calls == []
    for reply in (asked, client.simulate_post("/run/hello"), client.simulate_get("/nowhere")):
        assert reply.headers["Access-Control-Allow-Origin"] == "*"
        assert reply.headers["Access-Control-Allow-Methods"] == "GET, PUT, POST, DELETE, OPTIONS"
        assert "X-Requested-With" in reply.headers["Access-Control-Allow-Headers"]


def test_without_cors_no_reply_allows_another_origin(client: Client) -> None:
    assert "Access-Control-Allow-Origin" not in client.simulate_post("/run/hello").headers
