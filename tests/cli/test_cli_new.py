"""olcore new."""

from __future__ import annotations

import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from olcore.cli.new import pick_sandbox
from olcore.cluster import FOLDERS
from olcore.config import Config
from tests.cli.conftest import Cli


@contextmanager
def no_room() -> Iterator[None]:
    """Make every write to a file fail, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_new_makes_the_folders_and_a_template_with_every_key(cli: Cli) -> None:
    out = cli.ok("new")
    assert {each.name for each in cli.root.iterdir()} == set(FOLDERS)
    configured = cli.configured()
    assert set(Config.__struct_fields__) < set(configured)
    assert configured["pretended"] == {"size": 1, "fails": ""}
    assert configured["local"]["settle_ms"] > 0
    assert out.splitlines()[0] == f"Cluster directory: {cli.root}"
    assert out.splitlines()[-1] == "Next: olcore workers --cluster my-cluster"


def test_only_its_owner_enters_a_cluster(cli: Cli) -> None:
    cli.ok("new")
    assert stat.S_IMODE(cli.root.stat().st_mode) == 0o700
    assert stat.S_IMODE(cli.template.stat().st_mode) == 0o600


def test_a_path_that_exists_is_refused_and_not_touched(cli: Cli) -> None:
    cli.root.mkdir()
    (cli.root / "mine").write_text("precious")
    said = cli("new")
    assert said.code == 1
    assert f"{str(cli.root)!r} exists" in said.err
    assert [each.name for each in cli.root.iterdir()] == ["mine"]


def test_a_failure_half_way_leaves_nothing(cli: Cli) -> None:
    with no_room():
        said = cli("new")
    assert said.code == 1
    assert "File too large" in said.err
    assert not cli.root.exists()
    cli.ok("new")


def test_a_missing_parent_is_named_with_what_makes_it(cli: Cli, tmp_path: Path) -> None:
    cli.root = tmp_path / "deeper" / "cluster"
    said = cli("new")
    assert said.code == 1
    assert said.err.endswith(f"hint: mkdir -p {tmp_path / 'deeper'}\n")


@pytest.mark.parametrize(
    ("installed", "picked"),
    [
        (["another", "docker", "sock"], "sock"),
        (["another", "docker"], "docker"),
        (["another", "third"], "another"),
        ([], "sock"),
    ],
)
def test_the_sandbox_is_sock_then_docker_then_any(installed: list[str], picked: str) -> None:
    assert pick_sandbox(installed) == picked
