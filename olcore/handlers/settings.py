"""Reads what a handler says about itself: ``olcore.toml`` beside its code, or OpenLambda's ``ol.yaml``."""

from __future__ import annotations

import difflib
import logging
import os
import stat
import tomllib
from typing import TYPE_CHECKING, Any

import msgspec

from olcore.errors import HandlerInvalidError
from olcore.guest.loader import ENTRIES
from olcore.interfaces import Limits, Network

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from olcore.handlers.options import Options

log = logging.getLogger(__name__)

FILE = "olcore.toml"
OPENLAMBDA_FILE = "ol.yaml"

_LARGEST_FILE = 1 << 16
_REACH = (Network.NONE, Network.NAT, Network.HOST)


class HandlerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for one version of a handler: its own wishes within the worker's bounds."""

    limits: Limits
    network: Network
    environment: dict[str, str]
    entry: tuple[str, str]
    """File, relative to the code's folder, and function."""
    snapshot: bool
    """Whether to keep a private zygote that has imported the handler itself."""
    reuse_sandbox: bool
    """Whether an instance serves more than one request."""


class _File(msgspec.Struct, frozen=True, kw_only=True):
    limits: dict[str, int | float] = {}
    network: Network | None = None
    environment: dict[str, str] = {}
    entry: str | None = None
    snapshot: bool = False
    reuse_sandbox: bool = True


def read(code: Path, options: Options) -> HandlerSettings:
    """Read the settings of the handler in the folder *code*.

    Raises:
        HandlerInvalidError: A file cannot be read, an unknown key or a wrong value in it, a limit over the worker's
            ``max_limits``, or no entry file.
    """
    said = _yaml(code) | _toml(code)
    _refuse_unknown(said, _File.__struct_fields__, FILE)
    try:
        file = msgspec.convert(said, _File)
    except msgspec.ValidationError as error:
        raise HandlerInvalidError(f"{FILE}: {error}") from error
    _check_environment(file.environment)
    return HandlerSettings(
        limits=_limits(file.limits, options),
        network=_network(file.network, options),
        environment=file.environment,
        entry=_entry(code, file.entry),
        snapshot=file.snapshot,
        reuse_sandbox=file.reuse_sandbox,
    )


def _toml(code: Path) -> dict[str, Any]:
    text = _text(code, FILE)
    if text is None:
        return {}
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise HandlerInvalidError(f"{FILE}: {error}") from error


def _yaml(code: Path) -> dict[str, Any]:
    text = _text(code, OPENLAMBDA_FILE)
    if text is None:
        return {}
    # Imported here, because only handlers that come from OpenLambda have such a file.
    import yaml

    try:
        said = yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise HandlerInvalidError(f"{OPENLAMBDA_FILE}: {' '.join(str(error).split())}") from error
    environment = said.get("environment") or {} if isinstance(said, dict) else None
    if not isinstance(environment, dict):
        raise HandlerInvalidError(f"{OPENLAMBDA_FILE}: expected a mapping with a mapping inside")
    # OpenLambda's other keys (triggers) choose methods and schedules; here every handler takes every method.
    for key in said.keys() - {"environment", "reuse-sandbox"}:
        log.warning("%s of %s: %r has no meaning here", OPENLAMBDA_FILE, code.parent.name, key)
    return {
        "environment": {str(key): _scalar(value) for key, value in environment.items()},
        "reuse_sandbox": said.get("reuse-sandbox", True),
    }


def _scalar(value: object) -> str:
    # What stands unquoted in the file was text to its author, and YAML made a boolean or nothing of it.
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _text(code: Path, name: str) -> str | None:
    """Read a small regular file of the handler's, never through a link, which may lead anywhere on the host."""
    try:
        file = os.open(code / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HandlerInvalidError(f"{name} cannot be read: {error.strerror}") from error
    with os.fdopen(file, "rb") as stream:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise HandlerInvalidError(f"{name} is not a regular file")
        data = stream.read(_LARGEST_FILE + 1)
    if len(data) > _LARGEST_FILE:
        raise HandlerInvalidError(f"{name} has more than {_LARGEST_FILE} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise HandlerInvalidError(f"{name} is not UTF-8 at byte {error.start}") from error


def _refuse_unknown(said: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for key in said:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise HandlerInvalidError(f"{where}: unknown key {key!r}", hint=hint)


def _limits(said: Mapping[str, float], options: Options) -> Limits:
    _refuse_unknown(said, Limits.__struct_fields__, f"{FILE}: [limits]")
    for key, value in said.items():
        most = max(getattr(options.max_limits, key), getattr(options.limits, key))
        # Written so that nan, which compares with nothing, is refused too.
        if not 0 < value <= most:
            raise HandlerInvalidError(
                f"{FILE}: limits.{key} = {value:g} is not above 0 and at most {most:g}",
                hint=f"the operator can raise max_limits.{key}",
            )
    try:
        return msgspec.convert(msgspec.to_builtins(options.limits) | dict(said), Limits)
    except msgspec.ValidationError as error:
        raise HandlerInvalidError(f"{FILE}: limits: {error}") from error


def _network(said: Network | None, options: Options) -> Network:
    if said is None or said is options.network:
        return options.network
    widest = max(options.network, options.max_network, key=_REACH.index)
    if _REACH.index(said) > _REACH.index(widest):
        raise HandlerInvalidError(
            f"{FILE}: network = {said.value!r} reaches further than this worker allows, {widest.value!r}",
            hint="the operator can widen it",
        )
    return said


def _check_environment(environment: Mapping[str, str]) -> None:
    for key, value in environment.items():
        if not key or "=" in key or "\0" in key + value:
            raise HandlerInvalidError(f"{FILE}: {key!r} cannot be an environment variable")


def _entry(code: Path, said: str | None) -> tuple[str, str]:
    if said is None:
        for file, function in ENTRIES:
            if (code / file).is_file():
                return file, function
        wanted = " or ".join(f"{file} with {function}(event)" for file, function in ENTRIES)
        raise HandlerInvalidError(f"the handler has no {wanted}")
    file, _, function = said.partition(":")
    parts = file.split("/")
    if not function.isidentifier() or not file.endswith(".py") or "" in parts or ".." in parts:
        raise HandlerInvalidError(
            f"{FILE}: entry = {said!r} is not of the form 'file.py:function'",
            hint="the file is relative to the handler's folder",
        )
    if not (code / file).is_file():
        raise HandlerInvalidError(f"{FILE}: entry = {said!r}, and there is no file {file!r}")
    return file, function
