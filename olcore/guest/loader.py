"""Turns a handler's folder into a function to call."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType
    from typing import Any

ENTRIES = (("lambda_func.py", "handler"), ("f.py", "f"))
"""What is tried in order when the handler's settings name no entry: olcore's name, then that of today's OpenLambda."""

AFTER_FORK = "after_fork"
"""Function that a handler with a snapshot may define; called in each instance before its first event."""


class NoEntryError(Exception):
    """The folder has no file or the file has no function to call."""


def load(folder: str, entry: Sequence[str] | None = None) -> Callable[[Any], Any]:
    """Import the entry file and return its function.

    Args:
        folder: Where the handler's code is; it becomes the first of ``sys.path``, as for a script.
        entry: ``[file, function]``, the file relative to *folder*; ``None`` tries ``ENTRIES``.

    Raises:
        NoEntryError: Says what was looked for.
        BaseException: Whatever the handler's code raises while it is imported.
    """
    file, function = entry or _find(folder)
    sys.path.insert(0, folder)
    path = os.path.join(folder, file)
    if not os.path.isfile(path):
        raise NoEntryError(f"the handler has no file {file!r}")
    name = os.path.splitext(file)[0].replace("/", ".")
    module = sys.modules.get(name)
    if module is not None and getattr(module, "__file__", None) == path:
        # Forked from a snapshot, which has run the file already; it may want to renew what a fork must not share.
        getattr(module, AFTER_FORK, lambda: None)()
    else:
        module = _execute(name, file, path)
    called: Callable[[Any], Any] | None = getattr(module, function, None)
    if called is None or not callable(called):
        raise NoEntryError(f"{file} has no function {function!r}")
    return called


def _execute(name: str, file: str, path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise NoEntryError(f"{file!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs, as the import system does, so that pickle and dataclasses find the module by its name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _find(folder: str) -> tuple[str, str]:
    for file, function in ENTRIES:
        if os.path.isfile(os.path.join(folder, file)):
            return file, function
    wanted = " or ".join(f"{file} with {function}(event)" for file, function in ENTRIES)
    raise NoEntryError(f"the handler has no {wanted}")
