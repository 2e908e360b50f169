"""Asks a worker over HTTP."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any

import msgspec

from olcore.errors import ClusterError

if TYPE_CHECKING:
    from olcore import config

_HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - connected to, not bound


class Answer(msgspec.Struct, frozen=True):
    """What a worker answered."""

    status: int
    reason: str
    body: bytes


def get(core: config.Config, path: str, timeout_s: float = 5.0) -> Answer:
    """Ask the worker that *core* configures for *path*.

    Raises:
        ClusterError: It does not answer; says why.
    """
    host = _HERE.get(core.worker_host, core.worker_host)
    connection = http.client.HTTPConnection(host, core.worker_port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return Answer(response.status, response.reason, response.read())
    except TimeoutError as error:
        raise ClusterError(f"no answer within {timeout_s:g} s") from error
    except OSError as error:
        raise ClusterError(error.strerror or str(error)) from error
    except http.client.HTTPException as error:
        raise ClusterError(f"no HTTP answer: {type(error).__name__}: {error}") from error
    finally:
        connection.close()


def get_json(core: config.Config, path: str) -> dict[str, Any]:
    """Ask for a JSON object.

    Raises:
        ClusterError: There is no such answer; says why.
    """
    answer = get(core, path)
    try:
        value = json.loads(answer.body)
    except ValueError:
        value = None
    if answer.status != http.client.OK or not isinstance(value, dict):
        raise ClusterError(f"GET {path} was answered {answer.status} {answer.reason}")
    return value


def is_ready(core: config.Config) -> bool:
    """Say whether the worker answers that it is ready."""
    try:
        answer = get(core, "/status", timeout_s=2.0)
    except ClusterError:
        return False
    return answer.status == http.client.OK and answer.body.strip() == b"ready"
