"""Measures imports as they happen: what each module cost in time and memory, and what was looked for in vain.

The import system's own ``_load_unlocked`` runs once for each module that is found and not yet loaded; it is looked up by
name each time, so a wrapper around it sees them all, nested as they import each other. It is private to CPython: where it
is missing nothing is recorded, and all else works. What is looked for in vain is heard of by a finder that stands last.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

_BOOTSTRAP = getattr(importlib, "_bootstrap", None)
_LOAD = "_load_unlocked"
_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024


class Recorder:
    """Records between entering and leaving it as a context.

    Args:
        memory: Whether to measure the growth of the resident set too, which costs some 10 µs a module.
    """

    def __init__(self, *, memory: bool) -> None:
        self.records: list[tuple[str, str | None, int, int]] = []
        """``(module, file, self_us, self_kb)`` in the order in which the imports ended."""
        self.missed: set[str] = set()
        """Full names of modules that no finder found."""
        self._memory = memory
        self._below: list[list[float]] = []
        self._load: Any = getattr(_BOOTSTRAP, _LOAD, None)

    def __enter__(self) -> Recorder:  # noqa: PYI034 -- typing.Self is younger than Python 3.9
        if self._load is not None:
            setattr(_BOOTSTRAP, _LOAD, self._measured)
        sys.meta_path.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        if self._load is not None:
            setattr(_BOOTSTRAP, _LOAD, self._load)

    def find_spec(self, name: str, *_path_and_target: object) -> None:
        """Hear that every finder before has failed."""
        self.missed.add(name)

    def _measured(self, spec: Any) -> Any:  # noqa: ANN401 -- as the import system has it
        began_kb = self._resident_kb()
        began = time.perf_counter()
        below = [0.0, 0.0]
        self._below.append(below)
        loaded = False
        try:
            module = self._load(spec)
            loaded = True
            return module
        finally:
            took_us, grew_kb = (time.perf_counter() - began) * 1e6, self._resident_kb() - began_kb
            self._below.pop()
            if self._below:
                self._below[-1][0] += took_us
                self._below[-1][1] += grew_kb
            # One that raised, such as an optional part that lacks what it needs, is no module that could be preloaded.
            if loaded:
                file = spec.origin if spec.has_location else None
                self.records.append(
                    (spec.name, file, int(took_us - below[0]), max(0, int(grew_kb - below[1])))
                )

    def _resident_kb(self) -> int:
        if not self._memory:
            return 0
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * _PAGE_KB
