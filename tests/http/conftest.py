"""The HTTP application over fakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import falcon.testing
import pytest

from olcore.http import App, Gate, HttpOptions, make_app
from olcore.interfaces import Invocation, Outcome, WorkerInfo

INFO = WorkerInfo(
    cluster_name="/clusters/a",
    worker_name="worker-0",
    url="http://127.0.0.1:8080",
    sandbox="fake",
    registry="fake",
)


@dataclass
class Reply:
    result: bytes
    invocation: Invocation
    outcome: Outcome


@dataclass
class Echo:
    """Stands where a Manager stands: the edge is tested alone here, and over a real Manager in test_over_a_manager."""

    calls: list[tuple[str, bytes, str]] = field(default_factory=list)
    error: Exception | None = None
    stale_served: int = 0

    async def invoke(self, name: str, body: bytes, request_id: str) -> Reply:
        self.calls.append((name, body, request_id))
        if self.error is not None:
            raise self.error
        invocation = Invocation(
            request_id=request_id,
            handler=name,
            version="1",
            instance="i",
            cold=len(self.calls) == 1,
        )
        outcome = Outcome(
            status=200,
            code="ok",
            waited_s=0.002,
            ran_s=0.0015,
            body_bytes=len(body),
            result_bytes=len(body),
        )
        return Reply(body, invocation, outcome)

    def describe(self) -> list[dict[str, object]]:
        return [{"id": "i", "handler": "hello"}]

    def deaths(self) -> list[dict[str, object]]:
        return []

    def zygotes(self) -> list[dict[str, object]]:
        return [{"id": "0", "wheels": ["numpy-2.0-any"]}]


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def make_client(echo: Echo, gate: Gate) -> Callable[..., falcon.testing.TestClient]:
    def make(**options: Any) -> falcon.testing.TestClient:
        manager: Any = echo
        app: App = make_app(manager, INFO, gate, HttpOptions(**{"max_body_mb": 1.0, **options}))
        return falcon.testing.TestClient(app.asgi)

    return make


@pytest.fixture
def client(make_client: Callable[..., falcon.testing.TestClient]) -> falcon.testing.TestClient:
    return make_client()
