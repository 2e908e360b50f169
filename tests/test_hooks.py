"""hookspecs.py is the manual of hooks: nothing may be missing in it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from olcore import hookspecs
from tools.reference_docs import hook_names

ROOT = Path(__file__).parents[1]
HOOKS = hook_names()


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_has_full_types(hook: str) -> None:
    signature = inspect.signature(getattr(hookspecs, hook))
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter.name


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_says_when_it_is_called_and_who_is(hook: str) -> None:
    text = inspect.getdoc(getattr(hookspecs, hook)) or ""
    summary, _, rest = text.partition("\n\n")
    assert summary.endswith(".")
    assert "\n" not in summary
    assert re.match(r"Called (once|each time|before|when)", rest), rest
    if not hook.endswith(("_started", "_stopping")):
        assert re.search(r"\bAll (answers|listeners|implementations)\b", rest), rest


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_says_what_each_argument_is(hook: str) -> None:
    function = getattr(hookspecs, hook)
    _, _, arguments = (inspect.getdoc(function) or "").partition("\nArgs:\n")
    told = re.findall(r"^ {4}(\w+): \S", arguments, re.MULTILINE)
    assert told == list(inspect.signature(function).parameters)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_is_on_its_page_and_in_a_test(hook: str) -> None:
    assert f"### {hook}\n" in (ROOT / "docs" / "reference" / "hooks.md").read_text()
    tests = [*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("plugins/*/tests/test_*.py")]
    assert any(re.search(rf"\b{hook}\b", each.read_text()) for each in tests)


def test_every_hook_has_its_prefix_and_is_a_specification() -> None:
    marked = {name for name, value in vars(hookspecs).items() if hasattr(value, "olcore_spec")}
    assert marked == set(HOOKS)
