"""What the worker says about itself, and about paths that it has not."""

from __future__ import annotations

import falcon.testing
import pytest

from olcore.http import Gate

Client = falcon.testing.TestClient


def test_status_is_ready_in_plain_text(client: Client) -> None:
    reply = client.simulate_get("/status")
    assert (reply.status_code, reply.text) == (200, "ready\n")
    assert reply.headers["Content-Type"].startswith("text/plain")
    assert reply.headers["X-Request-Id"]
    assert reply.headers["Server-Timing"]


def test_status_of_a_stopping_worker_is_draining(client: Client, gate: Gate) -> None:
    gate.close()
    reply = client.simulate_get("/status")
    assert (reply.status_code, reply.json["error"]["code"]) == (503, "draining")


def test_instances_are_described(client: Client) -> None:
    reply = client.simulate_get("/instances")
    assert reply.json == {
        "worker": "worker-0",
        "instances": [{"id": "i", "handler": "hello"}],
        "deaths": [],
        "zygotes": [{"id": "0", "wheels": ["numpy-2.0-any"]}],
        "stale_served": 0,
    }


@pytest.mark.parametrize("path", ["/", "/nowhere", "/runhello", "/runLambda"])
def test_unknown_path_answers_in_the_one_shape(client: Client, path: str) -> None:
    reply = client.simulate_get(path, headers={"X-Request-Id": "r3"})
    assert reply.status_code == 404
    error = reply.json["error"]
    assert (error["code"], error["request_id"], error["handler"]) == ("no_such_path", "r3", "")
    assert path in error["message"]
    assert reply.headers["X-Request-Id"] == "r3"


def test_wrong_method_answers_in_the_one_shape(client: Client) -> None:
    reply = client.simulate_delete("/instances")
    assert (reply.status_code, reply.json["error"]["code"]) == (405, "method_not_allowed")
    assert "GET" in reply.headers["Allow"]
