"""Escape and interference attempts, as handlers: this package runs INSIDE the sandbox; standard library of Python 3.9+.

An attempt is a function that does what must not work. It ends with an OSError, whose name is its outcome, or returns a
word that says what it saw. The suite in olcore/testing/attacks.py compares the outcome with what was expected.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, NamedTuple

Event = dict[str, Any]


class Attack(NamedTuple):
    """One attempt."""

    function: Callable[[Event], object]
    expected: tuple[str, ...]
    """Names of errors, or words that the function returns when nothing was gained."""


ATTACKS: dict[str, Attack] = {}
"""Every attempt by its name; filled when the modules are imported."""

GAINED = "gained"
"""What an attempt returns that went through."""


def attack(*expected: str) -> Callable[[Callable[[Event], object]], Callable[[Event], object]]:
    """Register an attempt with the outcomes that are fine."""

    def register(function: Callable[[Event], object]) -> Callable[[Event], object]:
        ATTACKS[function.__name__] = Attack(function, expected)
        return function

    return register


def run(name: str, event: Event) -> str:
    """Make the attempt *name*, and say its outcome."""
    try:
        result = ATTACKS[name].function(event)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return GAINED if result is None else str(result)
