"""The attempts themselves; that each fails is for a backend's own tests to show."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from olcore.testing import attack_handlers
from olcore.testing.attack_handlers import ATTACKS, GAINED, Attack, raw, run
from olcore.testing.attacks import ELSEWHERE, OVER_THE_NETWORK


def test_there_are_many_and_each_is_tried_once() -> None:
    assert len(ATTACKS) >= 40
    assert sorted([*ELSEWHERE, *OVER_THE_NETWORK]) == sorted(ATTACKS)


def test_no_attempt_expects_to_gain() -> None:
    assert [name for name, attack in ATTACKS.items() if GAINED in attack.expected] == []


def test_an_outcome_is_an_error_s_name_a_word_or_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(event: attack_handlers.Event) -> None:
        raise PermissionError(1, "no")

    for function, outcome in (
        (refused, "EPERM"),
        (lambda event: "saw nothing", "saw nothing"),
        (lambda event: None, GAINED),
    ):
        monkeypatch.setitem(ATTACKS, "tried", Attack(function, ()))
        assert run("tried", {}) == outcome


def test_a_call_that_the_machine_lacks_is_not_implemented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(raw.NUMBERS, "getpid", (None, None))
    with pytest.raises(OSError, match="getpid") as caught:
        raw.syscall("getpid")
    assert caught.value.errno == 38


def test_the_sources_are_python_of_3_9() -> None:
    """They run with whatever interpreter is inside."""
    for path in Path(attack_handlers.__file__).parent.glob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 9))
