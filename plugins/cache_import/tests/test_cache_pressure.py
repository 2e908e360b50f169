"""When the machine is short of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from ol_cache_import.pressure import shortage_bytes


@pytest.mark.parametrize(
    ("text", "short_kb"),
    [
        ("MemTotal:        2000 kB\nMemFree: 1 kB\nMemAvailable:    500 kB\n", 0),
        ("MemTotal:        2000 kB\nMemFree: 1 kB\nMemAvailable:     40 kB\n", 60),
        ("MemTotal:        2000 kB\n", 0),
    ],
)
def test_less_than_a_twentieth_available_is_short(tmp_path: Path, text: str, short_kb: int) -> None:
    (tmp_path / "meminfo").write_text(text)
    assert shortage_bytes(tmp_path / "meminfo") == short_kb * 1024


def test_a_machine_that_does_not_say_is_not_short(tmp_path: Path) -> None:
    assert shortage_bytes(tmp_path / "none") == 0
