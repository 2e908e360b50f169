"""The plugins in examples/ and in the how-to pages work as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "plugin_registry_sqlite"
PAGE = ROOT / "docs" / "howto" / "write-a-registry.md"
SHOWN = re.findall(
    r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE
)


def test_the_files_on_the_page_alone_pass_the_contract(tmp_path: Path) -> None:
    copy = tmp_path / "plugin"
    for file, text in SHOWN:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        (copy / file).write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b[2-9]\d passed|\b1\d passed", done.stdout), done.stdout


def test_olcore_takes_the_example_registry(tmp_path: Path) -> None:
    script = """
import ol_registry_sqlite.plugin as plugin
from olcore.plugins import Plugins
plugins = Plugins.load()
plugins.add("registry-sqlite", plugin)
[listed] = [each for each in plugins.listed() if each.plugin == "registry-sqlite"]
assert listed.error is None, listed.error
assert plugins.registry("sqlite").summary
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(EXAMPLE), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("file", "text"), SHOWN, ids=[file for file, _ in SHOWN])
def test_the_page_shows_the_file_as_it_is(file: str, text: str) -> None:
    assert text == (EXAMPLE / file).read_text()


def test_the_page_shows_every_file_that_matters() -> None:
    assert {file for file, _ in SHOWN} == {
        "pyproject.toml",
        "ol_registry_sqlite/plugin.py",
        "ol_registry_sqlite/registry.py",
        "tests/test_sqlite_registry.py",
    }


def test_the_package_on_the_page_builds_from_the_files_on_the_page() -> None:
    shown = dict(SHOWN)
    # A file that is named there and not shown, such as a readme, would stop whoever types it off.
    project = tomllib.loads(shown["pyproject.toml"])["project"]
    assert project.get("readme", "pyproject.toml") in shown
