"""What the registry s3 says and does when its server fails."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import logging
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ol_registry_s3.plugin import ol_registry_backends
from ol_registry_s3.settings import S3Settings
from olcore.errors import (
    ConflictError,
    HandlerNotFoundError,
    RegistryError,
    RegistryUnavailableError,
)
from olcore.interfaces import HandlerVersion, Registry
from olcore.testing.registry import make_bundle, registry_context

from .conftest import Nanio, free_port  # noqa: TID252  # its full name depends on where pytest is run

Open = Callable[..., Any]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Open]:
    """Return a function that starts a registry with some settings; all are closed at the end."""
    [backend] = ol_registry_backends()
    async with AsyncExitStack() as undo:

        async def start(timeout_s: float = 10.0, **settings: Any) -> Registry:
            context = registry_context(tmp_path, timeout_s=timeout_s)
            registry: Registry = backend.make(context, S3Settings(**settings))
            undo.push_async_callback(registry.close)
            await registry.start()
            return registry

        yield start


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path, {"lambda_func.py": "def handler(event): ..."})


class OddServer(ThreadingHTTPServer):
    """Answers every request in one odd way."""

    daemon_threads = True
    answer: Callable[[BaseHTTPRequestHandler], None]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Odd)
        self.stopping = threading.Event()

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "url": "s3://bucket/prefix",
            "endpoint": f"http://127.0.0.1:{self.server_port}",
            "key": "the-key-itself",
            "secret": "the-secret-itself",
            "region": "us-east-1",
        }


class _Odd(BaseHTTPRequestHandler):
    server: OddServer

    def do_GET(self) -> None:
        self.server.answer(self)

    do_HEAD = do_PUT = do_DELETE = do_GET  # noqa: N815  # as the base class calls them

    def log_message(self, *args: Any) -> None:
        pass


def error(status: int, code: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        body = f"<Error><Code>{code}</Code><Message>the-secret-itself said so</Message></Error>"
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body.encode())

    return answer


def truncated(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.send_header("ETag", '"abc"')
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(b"x" * 10)
    request.close_connection = True


def silent(request: BaseHTTPRequestHandler) -> None:
    server = request.server
    assert isinstance(server, OddServer)
    server.stopping.wait(30)


def not_http(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    request.close_connection = True


@pytest.fixture
def odd() -> Iterator[OddServer]:
    server = OddServer()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.stopping.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (error(503, "SlowDown"), "overloaded"),
        (error(403, "AccessDenied"), "refuses us"),
        (error(403, "InvalidAccessKeyId"), "refuses us|does not know the key"),
        (error(500, "InternalError"), "has a fault"),
        (truncated, "broke off|got 10 of 1000"),
        (silent, "did not answer within 1.5 s|does not answer"),
        (not_http, "broke off|does not answer|has a fault"),
    ],
    ids=["slow-down", "forbidden", "unknown-key", "fault", "truncated", "silent", "not-http"],
)
async def test_an_odd_answer_is_said_in_time_and_without_secrets(
    opened: Open,
    odd: OddServer,
    tmp_path: Path,
    answer: Callable[[BaseHTTPRequestHandler], None],
    says: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    odd.answer = answer
    registry = await opened(timeout_s=1.5, **odd.settings)
    with pytest.raises(RegistryUnavailableError, match=says) as caught:
        await registry.pull(HandlerVersion(name="hello", version="1"), tmp_path)
    assert caught.value.retry_after_s
    assert "s3://bucket/prefix/hello.tar.gz" in caught.value.message
    assert "itself" not in f"{caught.value} {caught.value.hint} {caplog.text}"


async def test_listing_and_writing_meet_the_same_errors(
    opened: Open, odd: OddServer, bundle: Path
) -> None:
    odd.answer = error(403, "AccessDenied")
    registry = await opened(timeout_s=2, **odd.settings)
    for call in (
        registry.names,
        lambda: registry.publish("a", bundle),
        lambda: registry.remove("a"),
    ):
        with pytest.raises(RegistryUnavailableError, match="refuses us"):
            await call()


async def test_an_unknown_error_code_is_kept(opened: Open, odd: OddServer) -> None:
    odd.answer = error(418, "Teapot")
    registry = await opened(timeout_s=2, **odd.settings)
    with pytest.raises(RegistryError, match=r"said so|Teapot|418") as caught:
        await registry.names()
    assert "itself" not in str(caught.value)


async def test_a_missing_bucket_is_no_missing_handler(
    opened: Open, shared_nanio: Nanio, bundle: Path
) -> None:
    registry = await opened(**shared_nanio.settings("s3://not-there/prefix"))
    for call in (
        lambda: registry.lookup("hello"),
        registry.names,
        lambda: registry.publish("hello", bundle),
    ):
        with pytest.raises(RegistryUnavailableError, match="the bucket does not exist"):
            await call()


async def test_a_folder_that_is_not_mounted_is_no_missing_handler(
    opened: Open, bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    registry = await opened(url=f"file://{folder}")
    published = await registry.publish("hello", bundle)
    folder.rename(tmp_path / "away")
    for call in (
        lambda: registry.lookup("hello"),
        registry.names,
        lambda: registry.publish("hello", bundle),
        lambda: registry.publish("hello", bundle, if_version=""),
        lambda: registry.remove("hello"),
    ):
        with pytest.raises(RegistryUnavailableError, match=r"the folder does not exist.*mounted"):
            await call()
    assert not folder.exists()
    (tmp_path / "away").rename(folder)
    assert await registry.lookup("hello") == published


async def test_wrong_keys_are_refused(opened: Open, shared_nanio: Nanio, bucket: str) -> None:
    registry = await opened(**{**shared_nanio.settings(bucket), "secret": "another-secret"})
    with pytest.raises(RegistryUnavailableError, match="refuses") as caught:
        await registry.lookup("hello")
    assert "another-secret" not in f"{caught.value}"
    assert caught.value.hint


async def test_a_server_that_comes_back_is_used_again(
    opened: Open, nanio: Nanio, bundle: Path, tmp_path: Path
) -> None:
    url = nanio.make_bucket("handlers")
    registry = await opened(timeout_s=5, **nanio.settings(url))
    published = await registry.publish("hello", bundle)
    nanio.stop()
    with pytest.raises(RegistryUnavailableError, match=r"does not answer|broke off"):
        await registry.lookup("hello")
    nanio.start()
    assert await registry.lookup("hello") == published
    (tmp_path / "target").mkdir()
    assert await registry.pull(published, tmp_path / "target") == published


async def test_s3_itself_decides_between_two_programs(
    opened: Open, moto: str, bundle: Path, tmp_path: Path
) -> None:
    keys = {"key": "testing", "secret": "testing", "region": "eu-west-1", "endpoint": moto}
    registry = await opened(url="s3://decides", **keys)
    store = registry._store
    await asyncio.to_thread(store._fs.mkdir, "decides")
    first = await registry.publish("hello", bundle, if_version="")
    present = await asyncio.to_thread(store.find, "hello.tar.gz")
    newer = make_bundle(tmp_path, {"lambda_func.py": "newer"})
    assert (await registry.publish("hello", newer, if_version=first.version)) != first
    # What another program would do that had looked before we wrote:
    for condition in ({"IfNoneMatch": "*"}, {"IfMatch": present.etag}):
        with pytest.raises(ConflictError):
            await registry._in_thread(
                lambda condition=condition: store.store("hello.tar.gz", bundle, condition), "hello"
            )
    await registry.remove("hello")
    with pytest.raises(HandlerNotFoundError):
        await registry.lookup("hello")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, "s3.url is not set"),
        ({"url": "s3://b", "key": "k"}, "belong together"),
        ({"url": "s3:///prefix"}, "names no bucket"),
        ({"url": "s3://"}, "names no bucket"),
        ({"url": "handlers"}, "no absolute path"),
        ({"url": "file://handlers"}, "no absolute path"),
        ({"url": "s3://b", "endpoint": "localhost:9000"}, "no URL: http://"),
        ({"url": "s3://b", "verify": "/no/such/file"}, "no file of certificates"),
        ({"url": "gs://b"}, "gcsfs"),
        ({"url": "az://b"}, "adlfs"),
        ({"url": "nonsense://user:password@b"}, "nonsense"),
    ],
)
def test_what_is_missing_is_said(settings: dict[str, Any], why: str) -> None:
    [backend] = ol_registry_backends()
    said = backend.why_unusable(S3Settings(**settings))
    assert said is not None
    assert why in said
    assert "password" not in said


def test_settings_print_no_secret() -> None:
    options = {"token": "tttt", "client_kwargs": {"inner": ["iiii"]}}
    settings = S3Settings(url="s3://b", key="kkkk", secret="ssss", options=options)
    said = f"{settings!r} {settings}"
    assert "s3://b" in said
    secrets = ["kkkk", "ssss", "tttt", "iiii"]
    assert not any(secret in said for secret in secrets)
    assert settings.secrets() == secrets


@pytest.mark.parametrize("protocol", ["s3", "http"])
async def test_an_option_that_the_backend_does_not_know_is_said(
    opened: Open, protocol: str
) -> None:
    options = {"client_kwargs": {"nonsense": 1}}
    registry = await opened(url=f"{protocol}://somewhere/x", options=options)
    with pytest.raises(RegistryError, match="nonsense") as caught:
        await registry.names()
    assert caught.value.hint == "check options"


@pytest.mark.parametrize(
    ("status", "says"), [(403, "refuses us"), (503, "overloaded"), (429, "overloaded")]
)
async def test_a_status_of_another_backend_means_the_same(
    opened: Open, odd: OddServer, status: int, says: str
) -> None:
    odd.answer = error(status, "Whatever")
    registry = await opened(timeout_s=5, url=f"http://127.0.0.1:{odd.server_port}/handlers")
    with pytest.raises(RegistryUnavailableError, match=says):
        await registry.lookup("hello")


async def test_another_backends_server_that_is_away_is_unavailable(opened: Open) -> None:
    registry = await opened(timeout_s=5, url=f"http://127.0.0.1:{free_port()}/handlers")
    for call in (lambda: registry.lookup("hello"), registry.names):
        with pytest.raises(RegistryUnavailableError, match="does not answer"):
            await call()


def certificate(folder: Path) -> Path:
    """Make a certificate for 127.0.0.1 that nobody has signed; the file holds its key too."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return file


async def test_a_certificate_is_checked_unless_told_otherwise(
    opened: Open, odd: OddServer, tmp_path: Path
) -> None:
    file = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    odd.socket = context.wrap_socket(odd.socket, server_side=True)
    odd.answer = error(403, "AccessDenied")
    settings = {**odd.settings, "endpoint": odd.settings["endpoint"].replace("http", "https")}
    registry = await opened(timeout_s=5, **settings)
    with pytest.raises(RegistryUnavailableError, match="no valid certificate") as caught:
        await registry.names()
    assert caught.value.hint == "see verify"
    for verify in (False, str(file)):
        registry = await opened(timeout_s=5, **settings, verify=verify)
        with pytest.raises(RegistryUnavailableError, match="refuses us"):
            await registry.names()
