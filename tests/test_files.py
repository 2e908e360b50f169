"""What is true of every file, and no other tool says."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINES = 400
HIDDEN = {"dist", "build", "node_modules", "__pycache__"}


def sources() -> list[Path]:
    found = []
    for folder, below, names in os.walk(ROOT):
        below[:] = [name for name in below if not name.startswith(".") and name not in HIDDEN]
        found += [Path(folder) / name for name in names if name.endswith(".py")]
    return sorted(found)


SOURCES = {str(path.relative_to(ROOT)): path.read_text() for path in sources()}


def test_every_file_is_short_enough_to_be_read() -> None:
    lengths = {name: len(text.splitlines()) for name, text in SOURCES.items()}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_every_module_says_what_it_is_for_in_one_sentence() -> None:
    faults = {}
    for name, text in SOURCES.items():
        first = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
        # Examples are handlers, written as their readers write.
        if text.strip() and not first.endswith((".", ":")) and not name.startswith("examples/"):
            faults[name] = first
    assert faults == {}


def test_every_link_between_pages_leads_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/*.md")]
    assert pages
    dead = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert dead == []


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("olcore", ["falcon", "gunicorn", "click", "rich", "docker", "fsspec", "uvloop"]),
        ("olcore.interfaces", ["falcon", "gunicorn", "click", "rich", "uvloop"]),
        ("olcore.cli.main", ["falcon", "gunicorn", "docker", "s3fs", "pyroute2", "uvloop"]),
    ],
)
def test_an_import_costs_no_more_than_it_must(module: str, heavy: list[str]) -> None:
    program = f"import sys, {module}; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.split() == []


def test_a_command_imports_no_backend() -> None:
    heavy = ["falcon", "docker", "fsspec", "s3fs", "pyroute2", "ctypes"]
    program = (
        "import sys; from olcore.plugins import Plugins; from olcore.cli.main import make_group; "
        "make_group(Plugins.load()); "
        f"print(*[m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.split() == []
