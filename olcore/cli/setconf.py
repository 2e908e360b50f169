"""Changes a cluster's configuration."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from olcore import config
from olcore.cli.common import cluster_option, read_template
from olcore.errors import ConfigError
from olcore.plugins import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from olcore.cluster import Cluster
    from olcore.plugins import Plugins

_SECRET = ("secret", "password", "token", "key", "credential", "connection_string")


@click.command()
@cluster_option
@click.argument("changes", nargs=-1, required=True, metavar="JSON | KEY=VALUE ...")
@click.pass_obj
def setconf(plugins: Plugins, cluster: Cluster, changes: tuple[str, ...]) -> None:
    """Change what new workers are configured with.

    One JSON object is merged over config/template.json (RFC 7396: null takes a key back to its default), or each
    KEY=VALUE is, with dots in KEY for what is inside: limits.memory_mb=256.
    """
    before = read_template(cluster)
    patch = parse_changes(changes)
    after = config.merge(before, patch)
    sections = plugins.sections()
    # The section of a plugin that is gone or broken may stay, and may not be written.
    foreign = set(config.foreign_sections(before, sections)) - patch.keys()
    known = {key: value for key, value in after.items() if key not in foreign}
    settings = config.check(known, sections, str(cluster.template))
    # Only what is chosen now: a template that names a backend which has yet to be installed can be changed all the same.
    plugins.chosen(settings.core, [kind for kind in Kind if kind.value in patch])
    lines = list(differences(_whole(before, sections), _whole(after, sections)))
    if after != before:
        config.write(cluster.template, after)
    for line in lines or ["nothing changed"]:
        print(line)


def parse_changes(changes: Sequence[str]) -> dict[str, Any]:
    """Read the command's arguments as one merge patch.

    Raises:
        ConfigError: They are not JSON (with the position) and no pairs either.
    """
    first = changes[0].lstrip()
    if len(changes) == 1 and (first.startswith(("{", "[", '"')) or "=" not in first):
        return config.parse(changes[0], "the argument")
    patch: dict[str, Any] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(
                f"{change!r} is not KEY=VALUE",
                hint="give one JSON object in quotes, or pairs such as limits.memory_mb=256",
            )
        inner: Any = _value(text)
        for part in reversed(key.split(".")):
            inner = {part: inner}
        # Not merged by RFC 7396, which would take out the null that is meant for the template.
        _join(patch, inner)
    return patch


def _value(text: str) -> Any:  # noqa: ANN401 - JSON
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _join(target: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _join(target[key], value)
        else:
            target[key] = value


def _whole(raw: Mapping[str, Any], sections: config.Sections) -> dict[str, Any]:
    whole: dict[str, Any] = config.merge(config.defaults(sections), raw)
    return whole


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    """Say each key whose value is another now; a secret's value is not said."""
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        path = f"{prefix}{key}"
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{path}.")
        elif old != new:
            yield f"{path}: {_said(key, old)} -> {_said(key, new)}"


def _said(key: str, value: Any) -> str:  # noqa: ANN401 - JSON
    said = _shown(key, value)
    return said if said == "***" else json.dumps(said)


def _shown(key: str, value: Any) -> Any:  # noqa: ANN401 - JSON
    if value and any(word in key.lower() for word in _SECRET):
        return "***"
    if isinstance(value, dict):
        return {inner: _shown(inner, each) for inner, each in value.items()}
    if isinstance(value, list):
        return [_shown(key, each) for each in value]
    return value
