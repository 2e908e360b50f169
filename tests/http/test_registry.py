"""The registry over HTTP: who may, what is stored, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import falcon.testing
import pytest

from ol_registry_local.registry import LocalRegistry
from olcore import bundles
from olcore.config import Config
from olcore.handlers.options import Options
from olcore.http import Gate, HttpOptions, RegistryAccess, make_app
from olcore.testing.registry import make_bundle, registry_context

from .conftest import INFO, Echo  # noqa: TID252  # its full name depends on where pytest is run


@pytest.fixture
def options(tmp_path: Path) -> Options:
    core = Config()
    return Options(
        limits=core.limits,
        max_limits=core.max_limits,
        network=core.network,
        max_instances=1,
        max_queue=1,
        idle_timeout_s=1,
        pause_after_ms=0,
        memory_pool_mb=100,
        registry_cache_ms=0,
        max_bundle_mb=1,
        max_bundle_files=10,
        packages_dir=tmp_path,
    )


@pytest.fixture
def client(tmp_path: Path, options: Options, gate: Gate) -> falcon.testing.TestClient:
    registry = LocalRegistry(registry_context(tmp_path / "registry"), settle_s=0.005)
    access = RegistryAccess(registry=registry, api_key="the-api-key", options=options)
    manager: Any = Echo()
    app = make_app(manager, INFO, gate, HttpOptions(max_body_mb=1), access)
    return falcon.testing.TestClient(app.asgi, headers={"Authorization": "Bearer the-api-key"})


@pytest.fixture
def bundle(tmp_path: Path) -> bytes:
    return make_bundle(tmp_path, {"lambda_func.py": "def handler(event): ..."}).read_bytes()


def test_a_handler_goes_in_and_comes_out(
    client: falcon.testing.TestClient, bundle: bytes, tmp_path: Path, options: Options
) -> None:
    put = client.simulate_put("/registry/hello", body=bundle)
    assert put.status_code == 201
    version = put.json["version"]
    assert put.json == {"name": "hello", "version": version}
    assert put.headers["ETag"] == f'"{version}"'
    for path in ("/registry", "/registry/"):
        assert client.simulate_get(path).json == {
            "handlers": [{"name": "hello", "version": version}]
        }
    got = client.simulate_get("/registry/hello")
    assert got.headers["ETag"] == f'"{version}"'
    assert got.headers["Content-Type"] == "application/gzip"
    (tmp_path / "got.tar.gz").write_bytes(got.content)
    (tmp_path / "got").mkdir()
    bundles.unpack(tmp_path / "got.tar.gz", tmp_path / "got", bundles.Bounds(max_mb=1, max_files=9))
    assert (tmp_path / "got" / "lambda_func.py").read_text() == "def handler(event): ..."
    assert client.simulate_delete("/registry/hello").status_code == 200
    assert client.simulate_get("/registry/hello").status_code == 404


@pytest.mark.parametrize(
    "sent", [None, "Bearer wrong", "Bearer", "the-api-key", "Basic the-api-key", "Bearer \xfc"]
)
def test_without_the_key_nothing_is_done(
    client: falcon.testing.TestClient, bundle: bytes, sent: str | None
) -> None:
    # An empty header is what a missing one looks like to the worker.
    headers = {"Authorization": sent or ""}
    for method in ("PUT", "GET", "DELETE"):
        answer = client.simulate_request(method, "/registry/hello", body=bundle, headers=headers)
        assert answer.status_code == 401
        assert answer.json["error"]["code"] == "unauthorized"
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert client.simulate_get("/registry/", headers=headers).status_code == 401
    assert client.simulate_get("/registry/").json == {"handlers": []}


def test_there_is_no_such_path_unless_a_key_is_set(
    make_client: Callable[..., falcon.testing.TestClient],
) -> None:
    for path in ("/registry/", "/registry/hello"):
        assert make_client().simulate_get(path).status_code == 404


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"other.py": ""}, "no lambda_func.py"),
        ({"lambda_func.py": "def handler(event:"}, "lambda_func.py, line 1: "),
        ({"lambda_func.py": "\0"}, "lambda_func.py"),
        ({"lambda_func.py": f"x = {'-' * 100_000}1"}, "lambda_func.py is nested too deeply"),
        ({"lambda_func.py": "", "packages.txt": "--index-url x"}, "packages.txt line 1"),
        ({"lambda_func.py": "", "olcore.toml": "nonsense = 1"}, "unknown key 'nonsense'"),
        ({"lambda_func.py": "", "olcore.toml": "[limits]\nmemory_mb = 999999"}, "limits.memory_mb"),
    ],
)
def test_what_could_not_be_run_is_not_stored(
    client: falcon.testing.TestClient, tmp_path: Path, files: dict[str, str], says: str
) -> None:
    answer = client.simulate_put("/registry/hello", body=make_bundle(tmp_path, files).read_bytes())
    assert answer.status_code == 400
    assert answer.json["error"]["code"] == "bad_bundle"
    assert answer.json["error"]["message"].startswith("the bundle")
    assert says in answer.json["error"]["message"]
    assert client.simulate_get("/registry/").json == {"handlers": []}


def test_what_is_no_bundle_is_not_stored(client: falcon.testing.TestClient) -> None:
    answer = client.simulate_put("/registry/hello", body=b"not gzip")
    assert answer.status_code == 400
    assert "is not gzip" in answer.json["error"]["message"]


def test_too_large_a_bundle_is_refused(client: falcon.testing.TestClient) -> None:
    answer = client.simulate_put("/registry/hello", body=bytes((1 << 20) + 1))
    assert answer.status_code == 413
    assert "max_bundle_mb" in answer.json["error"]["hint"]


def test_a_condition_that_does_not_hold_changes_nothing(
    client: falcon.testing.TestClient, bundle: bytes
) -> None:
    new = {"If-None-Match": "*"}
    first = client.simulate_put("/registry/hello", body=bundle, headers=new)
    assert first.status_code == 201
    for headers in (new, {"If-Match": '"another"'}):
        answer = client.simulate_put("/registry/hello", body=bundle, headers=headers)
        assert answer.status_code == 412
        assert answer.json["error"]["code"] == "version_conflict"
    wrong = {"If-Match": '"another"'}
    assert client.simulate_delete("/registry/hello", headers=wrong).status_code == 412
    right = {"If-Match": first.headers["ETag"]}
    assert client.simulate_put("/registry/hello", body=bundle, headers=right).status_code == 201


def test_whatever_version_there_is_can_be_required(
    client: falcon.testing.TestClient, bundle: bytes
) -> None:
    whatever = {"If-Match": "*"}
    refused = client.simulate_put("/registry/hello", body=bundle, headers=whatever)
    assert (refused.status_code, refused.json["error"]["code"]) == (412, "version_conflict")
    client.simulate_put("/registry/hello", body=bundle)
    assert client.simulate_put("/registry/hello", body=bundle, headers=whatever).status_code == 201
    assert client.simulate_delete("/registry/hello", headers=whatever).status_code == 200


def test_a_bad_name_is_refused(client: falcon.testing.TestClient, bundle: bytes) -> None:
    for name in ("..", "a b", "x" * 129):
        answer = client.simulate_put(f"/registry/{name}", body=bundle)
        assert answer.status_code == 400
        assert answer.json["error"]["code"] == "bad_name"


def test_a_worker_that_drains_takes_no_upload(
    client: falcon.testing.TestClient, bundle: bytes, gate: Gate
) -> None:
    gate.close()
    assert client.simulate_put("/registry/hello", body=bundle).status_code == 503
