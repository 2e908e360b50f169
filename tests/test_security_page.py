"""Every line of SECURITY.md names tests that exist, and every attack stands on the page."""

from __future__ import annotations

import re
from pathlib import Path

from olcore.config import Config
from olcore.testing.attacks import ALL

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text()


def _held_by() -> set[str]:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and " | `" in line]
    return {
        name
        for row in rows
        for name in re.findall(r"`(\w+)`", row.rpartition(" | `")[2].join(("`", "")))
    }


def _tests() -> set[str]:
    files = [
        *ROOT.glob("tests/**/*.py"),
        *ROOT.glob("plugins/*/tests/**/*.py"),
        *ROOT.glob("olcore/testing/*.py"),
    ]
    return {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())}


def test_every_name_on_the_page_is_a_test_or_an_attack() -> None:
    assert _held_by() - _tests() - set(ALL) == set()


def test_every_attack_stands_on_the_page() -> None:
    assert {name for name in ALL if f"`{name}`" not in PAGE} == set()


def test_the_defaults_listen_on_loopback_only() -> None:
    assert Config().worker_host == "127.0.0.1"
    assert Config().api_key == ""
