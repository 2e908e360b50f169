"""The server that ``olcore registry`` starts."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ol_registry_s3.plugin import ol_registry_backends
from ol_registry_s3.settings import S3Settings
from olcore.cli.main import run
from olcore.errors import BackendUnusableError
from olcore.interfaces import RegistryAddress, ServerContext
from olcore.testing.registry import make_bundle

from .conftest import KEY, SECRET, Nanio  # noqa: TID252  # its full name depends on where pytest is run

Said = Callable[..., str]


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    return tmp_path / "cluster"


@pytest.fixture
def olcore(cluster: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Said]:
    """Return a function that runs the program on a cluster of the test's own, and returns what it said."""
    assert run(["new", "--cluster", str(cluster)]) == 0
    capsys.readouterr()

    def call(command: str, *rest: str, fails: bool = False) -> str:
        arguments = [command, "--cluster", str(cluster), *rest]
        if command == "registry":
            # In a process of its own, because what it starts outlives it.
            line = [sys.executable, "-m", "olcore", *arguments]
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            code, out, err = done.returncode, done.stdout, done.stderr
        else:
            code = run(arguments)
            out, err = capsys.readouterr()
        assert code == (1 if fails else 0), out + err
        return err if fails else out

    yield call
    assert run(["kill", "--cluster", str(cluster)]) == 0


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    folder = tmp_path / "hello"
    folder.mkdir()
    (folder / "lambda_func.py").write_text("def handler(event): return 'hello'\n")
    return folder


def template(cluster: Path) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((cluster / "config" / "template.json").read_text())
    return raw


def pid_of(cluster: Path) -> int:
    return int((cluster / "logs" / "registry.pid").read_text())


def test_a_server_is_started_used_shown_and_stopped(
    olcore: Said, cluster: Path, hello: Path
) -> None:
    said = olcore("registry", "--port", "0")
    raw = template(cluster)
    assert raw["registry"] == "s3"
    assert raw["s3"]["url"] == "s3://registry"
    for key in ("key", "secret"):
        # Shown where it says so, and nowhere else.
        assert said.count(raw["s3"][key]) == 1
        assert f's3.{key}: "" -> ***' in said
    assert stat.S_IMODE((cluster / "config" / "template.json").stat().st_mode) == 0o600
    assert "=> running [pid" in olcore("status")
    assert "already runs" in olcore("registry", fails=True)
    version = olcore("upload", "--handler", "hello", "--file", str(hello)).split()[-1]
    assert olcore("handlers") == f"hello  {version}\n"
    assert "Stopped registry" in olcore("kill")
    assert "registry" not in olcore("kill").lower()
    assert "does not answer" in olcore("handlers", "--timeout", "2", fails=True)
    secret = raw["s3"]["secret"]
    assert secret not in (cluster / "logs" / "registry.out").read_text()


def test_data_and_keys_survive_a_crash(
    olcore: Said, cluster: Path, hello: Path, tmp_path: Path
) -> None:
    olcore("registry", "--port", "0")
    olcore("upload", "--handler", "hello", "--file", str(hello))
    before = template(cluster)
    port = before["s3"]["endpoint"].rpartition(":")[2]
    pidfd = os.pidfd_open(pid_of(cluster))
    os.kill(pid_of(cluster), signal.SIGKILL)
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
    # As if the kill had come in the middle of another upload.
    stored = cluster / "registry-server" / "registry" / "hello.tar.gz"
    newer = make_bundle(tmp_path, {"lambda_func.py": "def handler(event): return 'newer'\n" * 9})
    stored.write_bytes(newer.read_bytes())
    assert "is gone" in olcore("status", fails=True)
    assert "shown once" not in olcore("registry", "--port", port)
    assert template(cluster) == before
    assert olcore("handlers").startswith("hello  ")
    olcore("download", "hello", "--to", str(tmp_path / "downloaded"))
    assert "newer" in (tmp_path / "downloaded" / "lambda_func.py").read_text()


def test_given_keys_are_used_and_not_printed(olcore: Said, cluster: Path) -> None:
    said = olcore("registry", "--port", "0", "--access-key", KEY, "--secret-key", SECRET)
    assert KEY not in said
    assert SECRET not in said
    assert template(cluster)["s3"]["key"] == KEY
    command = Path(f"/proc/{pid_of(cluster)}/cmdline").read_bytes().decode()
    assert SECRET not in command
    assert KEY not in command


def test_a_server_that_cannot_start_is_quoted_and_changes_nothing(
    olcore: Said, cluster: Path
) -> None:
    olcore("setconf", json.dumps({"s3": {"server": "sh -c 'echo no disk for {port}; exit 3'"}}))
    before = template(cluster)
    said = olcore("registry", "--port", "0", fails=True)
    assert "code 3" in said
    assert "no disk for" in said
    assert template(cluster) == before
    assert not (cluster / "logs" / "registry.pid").exists()


def test_an_upload_can_go_to_another_server(
    olcore: Said, cluster: Path, hello: Path, shared_nanio: Nanio
) -> None:
    if not (shared_nanio.folder / "registry").exists():
        shared_nanio.make_bucket("registry")
    address = f"127.0.0.1:{shared_nanio.port}"
    there = ("--address", address, "--access-key", KEY, "--secret-key", SECRET)
    olcore("upload", "--handler", "hello", "--file", str(hello), *there)
    assert olcore("handlers", *there).startswith("hello  ")
    assert olcore("handlers") == ""
    assert run(["remove", "--cluster", str(hello / "no-cluster"), "hello", *there]) == 0


def context(folder: Path) -> ServerContext:
    return ServerContext(folder=folder, host="127.0.0.1", port=1, access_key="k", secret_key="s")


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [("::1", "http://[::1]:1"), ("0.0.0.0", "http://127.0.0.1:1"), ("::", "http://[::1]:1")],
)
def test_the_clusters_workers_find_the_server_wherever_it_listens(
    tmp_path: Path, host: str, endpoint: str
) -> None:
    [backend] = ol_registry_backends()
    assert backend.serve is not None
    where = dataclasses.replace(context(tmp_path), host=host)
    server = backend.serve(where, S3Settings())
    assert (server.url, server.settings["endpoint"]) == (endpoint, endpoint)
    assert server.command[server.command.index("--host") + 1] == host


def test_other_servers_are_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [backend] = ol_registry_backends()
    assert backend.serve is not None
    for program in ("minio", "weed"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    minio = backend.serve(context(tmp_path), S3Settings(server="minio"))
    assert list(minio.command) == ["minio", "server", "--address", "127.0.0.1:1", str(tmp_path)]
    assert minio.environment["MINIO_ROOT_PASSWORD"] == "s"
    weed = backend.serve(context(tmp_path), S3Settings(server="weed"))
    assert f"-dir={tmp_path}" in weed.command
    own = backend.serve(context(tmp_path), S3Settings(server="weed --at '{host} {port}'"))
    assert list(own.command) == ["weed", "--at", "127.0.0.1 1"]
    assert "'s'" not in repr(own)


@pytest.mark.parametrize(
    ("server", "says"),
    [("no-such-program", "there is no program"), ("x {y}", "no command"), ("'", "no command")],
)
def test_a_server_that_is_not_there_is_named(tmp_path: Path, server: str, says: str) -> None:
    [backend] = ol_registry_backends()
    assert backend.serve is not None
    with pytest.raises(BackendUnusableError, match=says):
        backend.serve(context(tmp_path), S3Settings(server=server))


def test_an_address_keeps_what_the_settings_say_besides() -> None:
    [backend] = ol_registry_backends()
    assert backend.addressed is not None
    settings = S3Settings(url="s3://mine/x", key="k", secret="s", verify=False)
    there = backend.addressed(RegistryAddress(address="https://host"), settings)
    assert (there.url, there.endpoint, there.key) == ("s3://mine/x", "https://host", "k")
    assert there.verify is False
