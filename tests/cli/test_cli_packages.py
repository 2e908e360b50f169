"""olcore install, olcore packages and olcore packages prune, over a cluster on disk and a fake sandbox."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from olcore import hookimpl
from olcore.cli.main import make_group
from olcore.errors import ConfigError, HandlerNotFoundError, PackagesError
from olcore.interfaces import SandboxBackend
from olcore.plugins import Plugins
from olcore.testing.fakes import FakePool
from olcore.testing.wheels import WheelFolder

Run = Callable[..., str]


class NoSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """None."""


@hookimpl
def ol_sandbox_backends() -> Sequence[SandboxBackend[Any]]:
    return [
        SandboxBackend(
            name="pretended",
            summary="no isolation",
            settings=NoSettings,
            make=lambda context, settings: FakePool(),
        )
    ]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    wheels = WheelFolder(tmp_path / "wheels")
    wheels.add("beta", "1.2", {"beta.py": ""})
    wheels.add("alpha", "1.0", {"alpha.py": ""}, requires=["beta"])
    root = tmp_path / "c"
    for name in ("config", "registry/one", "registry/two", "workers", "logs"):
        (root / name).mkdir(parents=True)
    for name, wants in (("one", "alpha"), ("two", "beta")):
        (root / "registry" / name / "lambda_func.py").write_text("def handler(event): pass\n")
        (root / "registry" / name / "packages.txt").write_text(f"{wants}\n")
    template = {"sandbox": "pretended", "package_offline": True, "package_find_links": "../wheels"}
    (root / "config" / "template.json").write_text(json.dumps(template))
    return root


@pytest.fixture
def run(cluster: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    plugins = Plugins.load()
    plugins.add("pretended", SimpleNamespace(ol_sandbox_backends=ol_sandbox_backends))

    def run(*arguments: str) -> str:
        group = make_group(plugins)
        group.main(
            args=[*arguments, "--cluster", str(cluster)],
            prog_name="olcore",
            obj=plugins,
            standalone_mode=False,
        )
        return capsys.readouterr().out

    return run


def test_install_puts_a_handlers_packages_in_place_ahead_of_time(run: Run, cluster: Path) -> None:
    assert run("install", "one", "two") == "one: 2 packages in place\ntwo: 1 package in place\n"
    assert (cluster / "packages" / "alpha-1.0-py3-none-any" / "alpha.py").is_file()
    assert not list((cluster / "workers").iterdir())


def test_install_of_an_unknown_handler_names_it(run: Run) -> None:
    with pytest.raises(HandlerNotFoundError, match="'three'"):
        run("install", "three")


def test_install_says_why_packages_cannot_be_had(run: Run, cluster: Path) -> None:
    (cluster / "registry" / "two" / "packages.txt").write_text("gamma\n")
    with pytest.raises(PackagesError, match="gamma was not found"):
        run("install", "two")
    assert not list((cluster / "workers").iterdir())


def test_packages_lists_what_is_installed_and_who_uses_it(run: Run) -> None:
    assert run("packages") == "0 packages, 0.0 MiB\n"
    run("install", "one", "two")
    first, second, last = run("packages").splitlines()
    assert first.startswith("alpha-1.0-py3-none-any")
    assert first.endswith("used by one")
    assert second.endswith("used by one, two")
    assert last.startswith("2 packages")
    listed = json.loads(run("packages", "--json"))
    assert listed[1]["wheel"] == "beta-1.2-py3-none-any"
    assert listed[1]["used_by"] == ["one", "two"]


def test_prune_removes_what_no_handler_uses(run: Run, cluster: Path) -> None:
    run("install", "one", "two")
    assert run("packages", "prune") == "freed 0.0 MiB\n"
    shutil.rmtree(cluster / "registry" / "one")
    assert run("packages", "prune").startswith("removed alpha-1.0-py3-none-any (")
    assert run("packages").count("used by two") == 1
    assert run("install", "two") == "two: 1 package in place\n"


def test_prune_keeps_what_an_import_cache_preloads(run: Run, cluster: Path) -> None:
    run("install", "one", "two")
    tree = cluster / "workers" / "worker-0" / "tree.json"
    tree.parent.mkdir()
    tree.write_text('{"packages": ["missing", "alpha"]}')
    template = cluster / "config" / "template.json"
    own = {"import_cache": "tree", "tree": {"import_cache_tree": "tree.json"}}
    template.write_text(json.dumps(json.loads(template.read_text()) | own))
    shutil.rmtree(cluster / "registry" / "one")
    shutil.rmtree(cluster / "registry" / "two")
    assert run("packages", "prune") == "freed 0.0 MiB\n"
    assert run("packages").count("used by the import cache") == 2
    tree.write_text("{")
    with pytest.raises(ConfigError, match=r"tree\.json"):
        run("packages", "prune")
    tree.unlink()
    assert run("packages", "prune").count("removed") == 2
