"""What a worker makes of requests as they come over a connection, whichever way it answers them."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.clusters import Cluster

pytestmark = pytest.mark.kernel

HEAD = b"POST /run/echo HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture(params=["parsed in C", "parsed in Python"])
def wired(
    cluster: Cluster,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Cluster:
    """A cluster with one worker, with or without the extra ``fast``, and a handler that echoes."""
    if request.param == "parsed in Python":
        (tmp_path / "gunicorn_h1c.py").write_text("raise ImportError\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    cluster.start()
    assert ("parsed in Python" in cluster.log()) is (request.param == "parsed in Python")
    cluster.add("echo", "def handler(event):\n    return event\n")
    return cluster


class Client:
    """Sends bytes as they are, and reads replies one by one."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._file = connection.makefile("rb")

    def reply(self) -> tuple[int, dict[str, str], bytes]:
        status = int(self._file.readline().split()[1])
        headers = {}
        while line := self._file.readline().strip():
            name, _, value = line.decode().partition(": ")
            headers[name.lower()] = value
        return status, headers, self._file.read(int(headers.get("content-length", 0)))

    def is_ended(self) -> bool:
        return self._file.read(1) == b""


@contextmanager
def connected(cluster: Cluster) -> Iterator[Client]:
    with socket.create_connection(("127.0.0.1", cluster.port), timeout=30) as connection:
        yield Client(connection)


def post(body: bytes, more: bytes = b"") -> bytes:
    return HEAD + more + b"Content-Length: %d\r\n\r\n" % len(body) + body


def test_connections_are_kept_closed_and_filled_as_clients_ask(wired: Cluster) -> None:
    with connected(wired) as client:
        client.connection.sendall(post(b"1") + post(b"2") + post(b"{"))
        assert [client.reply()[2] for _ in range(2)] == [b"1", b"2"]
        status, _, body = client.reply()
        assert (status, b"bad_event" in body) == (400, True)

        # A body in several packets.
        whole = post(b'"' + b"x" * 300_000 + b'"')
        for begin in range(0, len(whole), 100_000):
            client.connection.sendall(whole[begin : begin + 100_000])
        assert len(client.reply()[2]) == 300_002

        # A body without a length.
        chunked = b"Transfer-Encoding: chunked\r\n\r\n1\r\n[\r\n2\r\n1]\r\n0\r\n\r\n"
        client.connection.sendall(HEAD + chunked)
        assert client.reply()[2] == b"[1]"

        # A client that waits to be asked for its body.
        client.connection.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\n")
        assert client.reply()[0] == 100
        client.connection.sendall(b"3")
        assert client.reply()[2] == b"3"

        client.connection.sendall(post(b"4", b"Connection: close\r\n"))
        _, headers, body = client.reply()
        assert (headers["connection"], body) == ("close", b"4")
        assert client.is_ended()


def test_http_1_0_is_spoken(wired: Cluster) -> None:
    with connected(wired) as client:
        client.connection.sendall(post(b"1").replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert client.reply()[2] == b"1"
        assert client.is_ended()


def test_reply_has_the_same_headers_whichever_way_it_was_made(wired: Cluster) -> None:
    replies = []
    for method in ("POST", "PUT"):  # the first is answered ahead of Falcon
        with connected(wired) as client:
            client.connection.sendall(post(b"1").replace(b"POST", method.encode()))
            replies.append(client.reply()[1])
    assert replies[0].keys() == replies[1].keys()
    assert re.fullmatch(r"queue;dur=[\d.]+, run;dur=[\d.]+, cold", replies[0]["server-timing"])
