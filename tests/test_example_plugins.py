"""The plugins in examples/ and in the how-to pages work as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "plugin_registry_sqlite"
PAGE = ROOT / "docs" / "howto" / "write-a-registry.md"


def test_the_example_registry_passes_the_contract(tmp_path: Path) -> None:
    copy = tmp_path / "plugin"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("__pycache__", ".*"))
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


SHOWN = re.findall(
    r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE
)


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
