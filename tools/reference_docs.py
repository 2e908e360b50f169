"""Writes docs/reference/configuration.md and hooks.md out of the code; a test fails when they are stale.

Run it from the root of the checkout, with every plugin installed: ``.venv/bin/python -m tools.reference_docs``.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec

from olcore import hookspecs
from olcore.config import Config
from olcore.interfaces import (
    Death,
    DeathCause,
    DestroyReason,
    HandlerVersion,
    InstanceInfo,
    Invocation,
    Limits,
    Outcome,
    WorkerInfo,
)
from olcore.plugins import Plugins

if typing.TYPE_CHECKING:
    from collections.abc import Iterator

PAGES = Path("docs/reference")

_CONFIGURATION = """\
# Configuration

A cluster's `config/template.json` is what `olcore workers` configures each new worker from; `olcore setconf` changes it, and checks
every key first. `config/worker-<N>.json`, which `workers` writes and `worker-exec` reads, has the same form. A key that is left out has
its default; a relative path counts from the cluster's folder in `template.json`, and in a worker's own file from that file's folder. Beside the core's keys stands one object for each backend, under the backend's name.

The environment adds: `OLCORE_CLUSTER` names the cluster when `--cluster` does not; `OLCORE_DEBUG_HOOKS=1` prints every call of a
[hook](hooks.md) on stderr; `OLCORE_ACCESS_KEY` and `OLCORE_SECRET_KEY` are the keys of `olcore registry`.

Keys of OpenLambda that mean something else here are refused with the name of their successor.

This page is made from the code: `python -m tools.reference_docs`.
"""

_HOOKS = """\
# Hooks

A plugin is a module that an entry point of the group `olcore` names:

```toml
[project.entry-points.olcore]
my-plugin = "ol_my_plugin.plugin"
```

Its functions marked `@olcore.hookimpl` are called as said here; one may leave out arguments that it does not use. Each plugin is loaded on
its own: one that cannot be imported, implements a hook that olcore has not, or offers a name that is taken, is listed by
`olcore plugins` with its error, and breaks nothing else. `OLCORE_DEBUG_HOOKS=1` prints every call on stderr.

```python
from olcore import hookimpl


@hookimpl
def ol_invocation_finished(invocation, outcome):
    print(invocation.handler, outcome.status)
```

This page is made from `olcore/hookspecs.py`: `python -m tools.reference_docs`.
"""

_EVENTS = """\
## Events

What happens in a worker, told to every plugin in order, on the event loop, after the reply has gone out. A listener is a plain function,
for nobody would await a coroutine; it must not block. One that raises is logged with its plugin's name, and hurts nobody.
"""

_VALUES = """\
## Values

What listeners are told; each is frozen, and stands in `olcore.interfaces`.
"""

_TOLD = (WorkerInfo, HandlerVersion, InstanceInfo, Invocation, Outcome, DestroyReason, Death)

_REGISTRATION = """\
## Registration

What a plugin offers. A backend is described, not made: its `make` is called when a worker chooses it.
"""


def docstrings(schema: type[msgspec.Struct]) -> dict[str, str]:
    """Read the sentence below each field of *schema*."""
    body = ast.parse(inspect.getsource(schema).strip()).body[0]
    assert isinstance(body, ast.ClassDef)  # noqa: S101 - its source was asked for
    found = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = after.value if isinstance(after, ast.Expr) else None
            if isinstance(text, ast.Constant):
                found[field.target.id] = " ".join(str(text.value).split()).replace("``", "`")
    return found


def type_name(kind: Any) -> str:  # noqa: ANN401 - types have no type
    """Say a field's type as people do who write JSON."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return f"{type_name(arguments[0])}{_bounds(arguments[1:])}"
    if origin is typing.Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_name(each) for each in arguments)
    if origin in (tuple, list):
        return f"list of {type_name(arguments[0])}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{json.dumps(each.value)}`" for each in kind)
    names = {str: "text", bool: "true or false", int: "whole number", float: "number"}
    return names.get(kind, "object")


def _bounds(metas: tuple[msgspec.Meta, ...]) -> str:
    said = []
    for meta in metas:
        said += [f">= {meta.ge}"] if meta.ge is not None else []
        said += [f"> {meta.gt}"] if meta.gt is not None else []
        said += [f"<= {meta.le}"] if meta.le is not None else []
    return f", {', '.join(said)}" if said else ""


def table(schema: type[msgspec.Struct], prefix: str = "") -> Iterator[str]:
    """Make the table of one schema's keys."""
    said = docstrings(schema)
    hints = typing.get_type_hints(schema, include_extras=True)
    yield "| key | default | type | |"
    yield "| --- | --- | --- | --- |"
    for field in msgspec.structs.fields(schema):
        default = json.dumps(msgspec.to_builtins(getattr(schema(), field.name)))
        if isinstance(getattr(schema(), field.name), Limits):
            default = "[below](#limits)"
        else:
            default = f"`{default}`"
        text = said.get(field.name, "").replace("|", "\\|")
        yield f"| `{prefix}{field.encode_name}` | {default} | {type_name(hints[field.name])} | {text} |"


def configuration() -> str:
    """Make docs/reference/configuration.md."""
    parts = [_CONFIGURATION, "## Core", "", *table(Config), "", *_limits()]
    plugins = Plugins.load()
    listed = [(backend, plugin) for plugin in plugins.listed() for backend in plugin.backends]
    for backend, plugin in sorted(listed, key=lambda each: each[0].name):
        schema = plugins.sections()[backend.name]
        summary = backend.summary.rstrip(".")
        parts += ["", f"## {backend.name}", ""]
        parts += [
            f"The {backend.kind} of `{plugin.distribution}`: {summary[0].lower()}{summary[1:]}."
        ]
        fields = msgspec.structs.fields(schema)
        parts += ["", *table(schema, f"{backend.name}.")] if fields else ["", "It has no settings."]
    return "\n".join(parts) + "\n"


def _limits() -> Iterator[str]:
    yield from ("## Limits", "")
    yield "The keys of `limits` and of `max_limits`; [limits](limits.md) says what happens beyond each."
    yield ""
    yield "| key | default | most a handler may ask for | |"
    yield "| --- | --- | --- | --- |"
    said = docstrings(Limits)
    most = Config().max_limits
    for name in Limits.__struct_fields__:
        yield f"| `{name}` | {getattr(Limits(), name)} | {getattr(most, name)} | {said[name]} |"


def hook_names() -> list[str]:
    """List every hook, in the order of hookspecs.py."""
    return [name for name in vars(hookspecs) if name.startswith("ol_")]


def hooks() -> str:
    """Make docs/reference/hooks.md."""
    offers = ("_backends", "_sources", "_commands")
    registration = [name for name in hook_names() if name.endswith(offers)]
    events = [name for name in hook_names() if name not in registration]
    parts = [_HOOKS, _REGISTRATION]
    parts += [_hook(name) for name in registration]
    parts += [_EVENTS]
    parts += [_hook(name) for name in events]
    parts += [_VALUES]
    parts += [_value(schema) for schema in _TOLD]
    return "\n".join(parts)


def _value(schema: type[msgspec.Struct]) -> str:
    said = docstrings(schema)
    lines = [f"### {schema.__name__}", "", inspect.cleandoc(schema.__doc__ or ""), ""]
    lines += ["| field | type | |", "| --- | --- | --- |"]
    for name, kind in typing.get_type_hints(schema, include_extras=True).items():
        lines += [f"| `{name}` | {field_type(kind)} | {said.get(name, '')} |"]
    return "\n".join([*lines, ""])


def field_type(kind: Any) -> str:  # noqa: ANN401 - types have no type
    """Say a field's type as people do who write Python."""
    if kind is DeathCause:
        return ", ".join(f"`{each.name}`" for each in DeathCause)
    if kind is Death:
        return "[`Death`](#death)"
    # A bar would end the table's cell.
    return f"`{kind.__name__ if isinstance(kind, type) else str(kind).replace(' | ', ' or ')}`"


def _hook(name: str) -> str:
    function = getattr(hookspecs, name)
    signature = str(inspect.signature(function)).replace("'", "")
    text = inspect.cleandoc(function.__doc__ or "").replace("``", "`")
    text, _, arguments = text.partition("\nArgs:\n")
    text, _, returns = text.partition("\nReturns:\n")
    lines = [f"### {name}", "", "```python", f"def {name}{signature}", "```", "", text.rstrip(), ""]
    if arguments:
        lines += [re.sub(r"^ +(\w+): ", r"- `\1`: ", each) for each in arguments.splitlines()]
        lines += [""]
    if returns:
        lines += [f"Returns: {inspect.cleandoc(returns)}", ""]
    return "\n".join(lines)


def main() -> None:
    """Write both pages."""
    (PAGES / "configuration.md").write_text(configuration())
    (PAGES / "hooks.md").write_text(hooks())


if __name__ == "__main__":
    main()
