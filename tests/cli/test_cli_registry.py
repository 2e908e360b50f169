"""olcore upload, handlers, download and remove, over a local registry."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from olcore.cli.main import run

Said = Callable[..., str]


@pytest.fixture
def olcore(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    """Return a function that runs the program on a cluster of the test's own, and returns what it said."""
    cluster = tmp_path / "cluster"
    assert run(["new", "--cluster", str(cluster)]) == 0
    capsys.readouterr()

    def call(*arguments: str, fails: bool = False) -> str:
        command, *rest = arguments
        assert run([command, "--cluster", str(cluster), *rest]) == (1 if fails else 0)
        said = capsys.readouterr()
        return said.err if fails else said.out

    return call


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    folder = tmp_path / "hello"
    folder.mkdir()
    (folder / "lambda_func.py").write_text("def handler(event): return 'hello'\n")
    return folder


def upload(file: Path, *more: str) -> Sequence[str]:
    return ("upload", "--handler", "hello", "--file", str(file), *more)


def test_a_folder_goes_in_is_listed_fetched_and_removed(
    olcore: Said, hello: Path, tmp_path: Path
) -> None:
    said = olcore(*upload(hello))
    version = said.split()[-1]
    assert said.startswith("Uploaded hello (0.")
    assert olcore("handlers") == f"hello  {version}\n"
    to = tmp_path / "fetched"
    assert version in olcore("download", "hello", "--to", str(to))
    assert (to / "lambda_func.py").read_text() == (hello / "lambda_func.py").read_text()
    assert olcore("remove", "hello") == "Removed hello\n"
    assert olcore("handlers") == ""
    assert "no handler 'hello'" in olcore("remove", "hello", fails=True)


def test_a_bundle_goes_in_and_comes_out_as_one(olcore: Said, hello: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "some.tar.gz"
    with tarfile.open(bundle, "w:gz") as archive:
        archive.add(hello / "lambda_func.py", "lambda_func.py")
    olcore(*upload(bundle))
    olcore("download", "hello", "--to", str(tmp_path / "out" / "hello.tar.gz"))
    with tarfile.open(tmp_path / "out" / "hello.tar.gz") as archive:
        assert archive.getnames() == ["lambda_func.py"]


def test_what_changed_meanwhile_is_not_overwritten(olcore: Said, hello: Path) -> None:
    version = olcore(*upload(hello, "--if-version", "")).split()[-1]
    assert "must not be there yet" in olcore(*upload(hello, "--if-version", ""), fails=True)
    newer = olcore(*upload(hello, "--if-version", version)).split()[-1]
    assert f"has version '{newer}'" in olcore(*upload(hello, "--if-version", version), fails=True)
    assert "has version" in olcore("remove", "hello", "--if-version", version, fails=True)
    olcore("remove", "hello", "--if-version", newer)


def test_what_could_not_be_run_is_refused(olcore: Said, hello: Path, tmp_path: Path) -> None:
    (hello / "lambda_func.py").write_text("def handler(event:\n")
    assert "lambda_func.py, line 1: " in olcore(*upload(hello), fails=True)
    (hello / "lambda_func.py").rename(hello / "other.py")
    assert "no lambda_func.py" in olcore(*upload(hello), fails=True)
    (hello / "lambda_func.py").write_text("")
    (hello / "packages.txt").write_text("numpy\n-r other.txt\n")
    assert "packages.txt line 2" in olcore(*upload(hello), fails=True)
    (hello / "packages.txt").unlink()
    os.mkfifo(hello / "pipe")
    assert "'pipe' is neither" in olcore(*upload(hello), fails=True)
    assert "there is no folder or bundle" in olcore(*upload(tmp_path / "nowhere"), fails=True)
    assert olcore("handlers") == ""


def test_an_upload_may_ask_for_what_the_workers_allow(olcore: Said, hello: Path) -> None:
    (hello / "olcore.toml").write_text('network = "nat"\n')
    olcore("setconf", "network=none")
    olcore(*upload(hello))
    olcore("setconf", "max_network=none")
    assert "network" in olcore(*upload(hello), fails=True)


def test_a_bad_name_is_refused(olcore: Said, hello: Path) -> None:
    said = olcore("upload", "--handler", "../x", "--file", str(hello), fails=True)
    assert "'../x' is no name of a handler" in said


def test_nothing_is_overwritten_by_a_download(olcore: Said, hello: Path) -> None:
    olcore(*upload(hello))
    assert "exists" in olcore("download", "hello", "--to", str(hello), fails=True)
    assert [entry.name for entry in hello.iterdir()] == ["lambda_func.py"]


def test_a_download_that_fails_leaves_no_folder(olcore: Said, tmp_path: Path) -> None:
    olcore("download", "missing", "--to", str(tmp_path / "a" / "b" / "c"), fails=True)
    assert not (tmp_path / "a").exists()


def test_keys_without_an_address_are_refused_unless_the_environment_has_them(
    olcore: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--secret-key goes with --address" in olcore("handlers", "--secret-key", "x", fails=True)
    monkeypatch.setenv("OLCORE_SECRET_KEY", "x")
    olcore("handlers")


def test_a_large_upload_shows_how_it_goes(olcore: Said, hello: Path, tmp_path: Path) -> None:
    (hello / "data").write_bytes(os.urandom(5 << 20))
    arguments = ["upload", "--cluster", str(tmp_path / "cluster"), *upload(hello)[1:]]
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "olcore", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        with suppress(OSError):  # how a terminal says that nobody writes to it any more
            while chunk := os.read(ours, 1 << 16):
                seen += chunk
        os.close(ours)
        said, _ = process.communicate()
    assert b"Uploading hello (5." in seen
    assert said.startswith(b"Uploaded hello (5.")


def test_a_missing_cluster_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["handlers", "--cluster", str(tmp_path / "none")]) == 1
    assert "is no cluster" in capsys.readouterr().err
