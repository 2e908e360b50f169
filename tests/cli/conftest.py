"""Commands run in this process over a cluster of the test's own; workers run over a sandbox that isolates nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from olcore.cli import main
from olcore.testing.leaks import snapshot
from tests.integration.clusters import await_true, free_ports

PRETENDED = """
import msgspec
from olcore import hookimpl
from olcore.interfaces import SandboxBackend


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size: int = 1
    fails: str = ""


def make(context, settings):
    from olcore.testing.fakes import FakePool

    if settings.fails:
        raise RuntimeError(settings.fails)
    return FakePool()


@hookimpl
def ol_sandbox_backends():
    return [SandboxBackend(name="pretended", summary="no isolation", settings=Settings, make=make)]
"""


@dataclass(frozen=True)
class Said:
    """What one command said."""

    code: int
    out: str
    err: str


def in_a_process(*arguments: str) -> Said:
    """Run the program as a process of its own."""
    line = [sys.executable, "-m", "olcore", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=50)
    return Said(done.returncode, done.stdout, done.stderr)


class Distributions:
    """A folder on the import path in which distributions with plugins can be installed, and removed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, name: str, source: str, version: str = "1.0") -> None:
        module = name.replace("-", "_")
        (self.folder / f"{module}.py").write_text(source)
        info = self.folder / f"{module}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        info.joinpath("METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        info.joinpath("entry_points.txt").write_text(f"[olcore]\n{name} = {module}\n")


class Cli:
    """The program, and one cluster to use it on."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str], port: int) -> None:
        self.root = root
        self.port = port
        self._capsys = capsys

    def __call__(self, *arguments: str, cluster: bool = True) -> Said:
        where = [f"--cluster={self.root}"] if cluster else []
        line = [*arguments[:1], *where, *arguments[1:]]
        if arguments[0] == "workers":
            # Elsewhere, for this process would have to reap what it starts.
            return in_a_process(*line)
        self._capsys.readouterr()
        code = main.run(line)
        said = self._capsys.readouterr()
        return Said(code, said.out, said.err)

    def ok(self, *arguments: str) -> str:
        said = self(*arguments)
        assert said.code == 0, f"{arguments}: {said.out}{said.err}"
        return said.out

    @property
    def template(self) -> Path:
        return self.root / "config" / "template.json"

    def configured(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.template.read_text())
        return found

    def pid_file(self, number: int = 0) -> Path:
        return self.root / "logs" / f"worker-{number}.pid"

    def pid(self, number: int = 0) -> int:
        return int(self.pid_file(number).read_text())


@pytest.fixture
def distributions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distributions:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    # Workers are processes of their own.
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    installed = Distributions(folder)
    installed.install("ol-sandbox-pretended", PRETENDED)
    return installed


@pytest.fixture
def cli(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    distributions: Distributions,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Cli]:
    """A cluster that is not made yet; what runs in it at the end is stopped, and nothing may be left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OLCORE_CLUSTER", raising=False)
    cli = Cli(tmp_path / "my-cluster", capsys, free_ports(3))
    before = snapshot([tmp_path]).processes
    yield cli
    if cli.template.exists():
        cli("kill")
    # Processes only: this sandbox makes nothing else, and other tests' clusters may come and go meanwhile.
    await_true(
        lambda: not snapshot([tmp_path]).processes - before, "every process of the test has ended"
    )


@pytest.fixture
def made(cli: Cli) -> Cli:
    """A cluster with the pretended sandbox."""
    cli.ok("new")
    cli.ok("setconf", "sandbox=pretended", f"worker_port={cli.port}", "network=host")
    return cli


@pytest.fixture
def running(made: Cli) -> Cli:
    """A cluster with one worker."""
    made.ok("workers")
    return made
