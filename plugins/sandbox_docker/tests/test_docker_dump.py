"""An image becomes the base of a cluster, by the command that users type."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from ol_sandbox_docker.dump import exported
from ol_sandbox_docker.engine import Engine
from ol_sandbox_docker.settings import DockerSettings
from olcore.errors import SandboxUnavailableError
from olcore.testing.rendezvous import DEADLINE_S

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


def _new(cluster: Path, base: str, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "olcore", "new", "--cluster", str(cluster), "--base", base],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DOCKER_HOST": url},
    )


def _containers(settings: DockerSettings) -> list[dict[str, Any]]:
    engine = Engine(settings.base_url, DEADLINE_S)
    try:
        return engine.containers({"ol.type": "base"})
    finally:
        engine.close()


def test_an_image_becomes_a_base(settings: DockerSettings, tmp_path: Path) -> None:
    done = _new(tmp_path / "cluster", f"docker:{settings.image}", settings.base_url)
    assert done.returncode == 0, done.stderr
    assert f"docker:{settings.image}, with Python 3." in done.stdout
    assert "/usr/bin/python3" in done.stdout
    base = tmp_path / "cluster" / "base"
    assert (base / "etc" / "debian_version").is_file()
    assert not list((base / "dev").iterdir())
    assert _containers(settings) == []


def test_an_image_that_is_not_there_says_how_to_get_it(
    settings: DockerSettings, tmp_path: Path
) -> None:
    done = _new(tmp_path / "cluster", "docker:ol-none", settings.base_url)
    assert (done.returncode, (tmp_path / "cluster").exists()) == (1, False)
    assert "has no image 'ol-none'" in done.stderr
    assert "hint: docker pull ol-none" in done.stderr


def test_an_engine_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = _new(tmp_path / "cluster", "docker:debian", f"unix://{tmp_path}/none.sock")
    assert (done.returncode, (tmp_path / "cluster").exists()) == (1, False)
    assert f"no Docker engine at {tmp_path}/none.sock: no such socket" in done.stderr
    assert "DOCKER_HOST" in done.stderr


def test_an_engine_of_another_machine_is_refused_with_another_way(tmp_path: Path) -> None:
    done = _new(tmp_path / "cluster", "docker:debian", "tcp://127.0.0.1:1")
    assert done.returncode == 1
    assert "DOCKER_HOST is 'tcp://127.0.0.1:1', and no Unix socket" in done.stderr
    assert "docker export" in done.stderr


def test_an_image_without_a_name_is_not_there(settings: DockerSettings, tmp_path: Path) -> None:
    assert "has no image ''" in _new(tmp_path / "c", "docker:", settings.base_url).stderr


def test_an_engine_that_dies_half_way_says_so_and_keeps_nothing(
    engine: Any, settings: DockerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", settings.base_url)
    with exported(settings.image) as archive:
        chunks = iter(archive.chunks)
        assert next(chunks)
        engine.kill()
        try:
            with pytest.raises(SandboxUnavailableError, match="does not answer"):
                deque(chunks)
        finally:
            engine.start()
    assert _containers(settings) == []
