"""A worker's configuration: schema, defaults, merge and checks; the only reader of the environment.

template.json and worker-<N>.json are one JSON object: the core's keys (the fields of ``Config``) beside one object for
each backend, under the backend's name (its ``settings`` struct). Every installed backend's object is checked, not only
the chosen one's, so that switching to a backend never meets a surprise.
"""

from __future__ import annotations

import difflib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from olcore.errors import ConfigError
from olcore.interfaces import Limits, Network, WorkerContext

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0)]


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The core's keys. A relative path is relative to the folder of the file that it stands in."""

    cluster_name: str = ""
    """Label on what the worker makes outside its folder; empty means the cluster's absolute path."""
    sandbox: str = "sock"
    """Sandbox backend."""
    registry: str = "local"
    """Registry backend."""
    scheduler: str = "lifo"
    """Scheduler."""
    import_cache: str = ""
    """Import cache; empty means none."""
    worker_host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    """Address to listen on."""
    worker_port: Port = 8080
    """Port to listen on; a number, also as text."""
    worker_dir: str = ""
    """The worker's own state; empty means ``workers/<name>``."""
    registry_dir: str = "registry"
    """The local handler store."""
    packages_dir: str = "packages"
    """Where wheels are installed; ``/packages`` inside."""
    package_index: str = ""
    """The package index's URL; empty means uv's default."""
    package_extra_indexes: tuple[str, ...] = ()
    """More package indexes, which come before that one."""
    package_find_links: str = ""
    """A folder of wheels to choose from besides the indexes."""
    package_offline: bool = False
    """Install without network: from uv's cache and ``package_find_links``."""
    allow_source_builds: bool = False
    """Whether a package without a wheel may be built, as a user without privileges."""
    packages_private: bool = False
    """Whether a handler sees its own wheels only, not every wheel of the cluster."""
    package_retry_s: Seconds = 60.0
    """How long a failed installation is remembered before it is tried again."""
    package_timeout_s: Seconds = 300.0
    """No step of an installation may take longer."""
    base_dir: str = "base"
    """Root file system of sandboxes; an empty folder means the backend's default."""
    network: Network = Network.NAT
    """What handlers can reach: ``none``, ``nat`` or ``host``."""
    max_network: Network = Network.NAT
    """The widest network that a handler's own ``olcore.toml`` may ask for."""
    limits: Limits = Limits()
    """What one instance may use, unless its handler says otherwise."""
    max_limits: Limits = Limits(
        memory_mb=2048,
        cpu_percent=400,
        max_processes=1024,
        scratch_mb=1024,
        tmp_mb=1024,
        timeout_s=900.0,
        max_body_mb=64.0,
        max_result_mb=64.0,
    )
    """What a handler's own ``olcore.toml`` may ask for at most."""
    max_instances: NotNegative = 0
    """Instances of one handler at once; 0 means 4 for each core."""
    max_queue: NotNegative = 100
    """Requests of one handler that may wait; one more is answered 429."""
    idle_timeout_s: Seconds = 300.0
    """An instance that is idle for so long is destroyed."""
    pause_after_ms: NotNegative = 1000
    """An instance that is idle for so long is frozen; 0 means never."""
    memory_pool_mb: NotNegative = 0
    """What the instances of the worker may use together, by their limits; 0 means 80 % of the machine's memory."""
    drain_timeout_s: Seconds = 30.0
    """How long a stopping worker waits for requests in flight."""
    registry_cache_ms: NotNegative = 5000
    """How old an answer of a remote registry may be."""
    registry_timeout_s: Seconds = 10.0
    """No call of a registry may take longer."""
    max_bundle_mb: Positive = 250
    """A handler may not unpack to more MiB."""
    max_bundle_files: Positive = 20000
    """A handler may not have more files."""
    api_key: str = ""
    """Who sends it as a bearer token may change the registry through the worker (``/registry/``); empty means nobody."""
    cors: bool = False
    """Whether to answer OPTIONS and to send CORS headers that allow every origin."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """From which level on the worker's log has lines."""


SUCCESSORS = {
    "registry_server": "'s3.endpoint'",
    "registry_access_key": "'s3.key'",
    "registry_secret_key": "'s3.secret'",
    "pip_mirror": "'package_index'",
    "pkgs_dir": "'packages_dir'",
    "sock_base_path": "'base_dir'",
    "reg_dir": "'registry_dir'",
    "max_runners": "'max_instances' (an instance serves one request at a time)",
    "handler_cache_size": "'memory_pool_mb' (in MiB, not KB)",
    "import_cache_size": "'import_cache' (the backend's name; its own section has the size in MiB)",
    "cg_pool_size": "'sock.stem_cells'",
    "sandbox_config": "'limits' (its 'processes' is 'limits.max_processes')",
    "startup_pkgs": "nothing: a handler names its packages in packages.txt",
    "benchmark_log": "nothing: every reply has Server-Timing, and 'python -m bench' measures",
    "timing": "'log_level', set to 'debug'",
    "skip_pull_existing": "nothing: a version is pulled once",
}
"""OpenLambda's keys, in lower case as its parser takes any, that mean something else here; and what took their place."""

VALUE_SUCCESSORS = {("registry", "remote"): "s3"}
"""Values of OpenLambda that have another name here."""

Sections = Mapping[str, type[msgspec.Struct]]


@dataclass(frozen=True, slots=True)
class Settings:
    """A checked configuration: the core's part, and each backend's by its name."""

    core: Config
    backends: Mapping[str, msgspec.Struct]


def defaults(sections: Sections) -> dict[str, Any]:
    """Write down every key with its default, the core's first.

    Args:
        sections: Each backend's settings by its name.
    """
    whole: dict[str, Any] = msgspec.to_builtins(Config())
    for name, schema in sorted(sections.items()):
        whole[name] = msgspec.to_builtins(schema())
    return whole


def merge(target: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7396): objects merge, ``null`` removes, all else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def check(raw: Mapping[str, Any], sections: Sections, where: str = "the configuration") -> Settings:
    """Check a configuration against the schema of the core and of every installed backend.

    Args:
        raw: The JSON object.
        sections: Each backend's settings by its name.
        where: Named in errors.

    Raises:
        ConfigError: An unknown key (with the nearest known one), a wrong type or value (with path and expectation).
    """
    core: dict[str, Any] = {}
    backends: dict[str, msgspec.Struct] = {name: schema() for name, schema in sections.items()}
    for key, value in raw.items():
        if key in Config.__struct_fields__:
            core[key] = int(value) if key == "worker_port" and str(value).isdecimal() else value
        elif key in sections:
            backends[key] = _convert(value, sections[key], f"{where}: {key}", f"$.{key}")
        else:
            error = unknown_key(key, [*Config.__struct_fields__, *sections], where)
            if key in foreign_sections(raw, sections):
                error.hint = f"install the plugin that reads it; or {error.hint}"
            raise error
        if isinstance(value, str) and (key, value) in VALUE_SUCCESSORS:
            raise ConfigError(
                f"{where}: {key}: {value!r} is OpenLambda's",
                hint=f"here it is {VALUE_SUCCESSORS[key, value]!r}",
            )
    return Settings(_convert(core, Config, where, "$"), backends)


def foreign_sections(raw: Mapping[str, Any], sections: Sections) -> list[str]:
    """List the objects in *raw* that nothing installed reads, such as those of a plugin that is gone or broken."""
    return [
        key
        for key, value in raw.items()
        if isinstance(value, dict)
        and key not in sections
        and key not in Config.__struct_fields__
        and key.lower() not in SUCCESSORS
    ]


def unknown_key(key: str, known: list[str], where: str) -> ConfigError:
    """Make the error for a key that nothing knows, naming its successor or the nearest known key."""
    if key.lower() in SUCCESSORS:
        return ConfigError(
            f"{where}: {key!r} is a key of OpenLambda", hint=f"here it is {SUCCESSORS[key.lower()]}"
        )
    near = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
    return ConfigError(f"{where}: unknown key {key!r}", hint=hint)


def _convert(value: Any, schema: type[msgspec.Struct], where: str, path: str) -> Any:
    if isinstance(value, dict):
        _refuse_unknown(value, schema, where, path)
    try:
        return msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        said = (
            str(error).replace(" `$", f" `{path}", 1)
            if "`$" in str(error)
            else f"{error} - at `{path}`"
        )
        choices = _choices(said.rpartition(f"`{path}")[2].strip(".`").split("."), schema)
        hint = f"one of: {', '.join(choices)}" if choices else None
        raise ConfigError(f"{where}: {said}", hint=hint) from error


def _choices(keys: list[str], schema: type[msgspec.Struct]) -> list[str]:
    """List the words that the field at *keys* may be; none where it may be more than certain words."""
    kind: Any = schema
    for key in keys:
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            return []
        kind = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}.get(key)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return [each.value for each in kind]
    return [each for each in get_args(kind) if isinstance(each, str)]


def _refuse_unknown(
    value: dict[str, Any], schema: type[msgspec.Struct], where: str, path: str
) -> None:
    # msgspec names an unknown field too, but not the nearest known one.
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(schema)}
    for key, inner in value.items():
        if key not in fields:
            raise unknown_key(key, list(fields), f"{where}, at `{path}`")
        kind = fields[key]
        if isinstance(inner, dict) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            _refuse_unknown(inner, kind, where, f"{path}.{key}")


def read(path: Path) -> dict[str, Any]:
    """Read a JSON object from *path*.

    Raises:
        ConfigError: It cannot be read, is not JSON (with line and column) or no object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    return parse(text, str(path))


def parse(text: str, where: str) -> dict[str, Any]:
    """Parse *text* as a JSON object; *where* is named in errors.

    Raises:
        ConfigError: It is not JSON (with line and column), or no object.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{where}: not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def write(path: Path, raw: Mapping[str, Any]) -> None:
    """Write *raw* to *path* so that a reader sees the old text or the new, never a part; mode 0600, for secrets.

    Raises:
        ConfigError: It cannot be written, and is as it was.
    """
    text = json.dumps(raw, indent=2)
    try:
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(fd, "w") as file:
                file.write(f"{text}\n")
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"cannot write {str(path)!r}: {error.strerror}") from error


def resolve(core: Config, file: Path) -> Config:
    """Make every path absolute and fill in what depends on where the configuration stands.

    Args:
        core: What *file* says.
        file: Relative paths count from its folder; its stem is the worker's name.
    """
    folder = file.absolute().parent

    def absolute(path: str) -> str:
        return os.path.normpath(folder / path)

    return msgspec.structs.replace(
        core,
        cluster_name=core.cluster_name or str(folder),
        worker_dir=absolute(core.worker_dir or f"workers/{file.stem}"),
        registry_dir=absolute(core.registry_dir),
        packages_dir=absolute(core.packages_dir),
        base_dir=absolute(core.base_dir),
        package_find_links=core.package_find_links
        if "://" in core.package_find_links or not core.package_find_links
        else absolute(core.package_find_links),
    )


def worker_context(name: str, core: Config) -> WorkerContext:
    """Say what a backend is told about the worker *name*, which *core*, resolved, configures."""
    return WorkerContext(
        cluster_name=core.cluster_name,
        worker_name=name,
        worker_dir=Path(core.worker_dir),
        base_dir=Path(core.base_dir),
        packages_dir=Path(core.packages_dir),
        limits=core.limits,
        network=core.network,
    )


def url(core: Config) -> str:
    """Say where people on this machine reach the worker."""
    host = core.worker_host
    if host in ("127.0.0.1", "::1", "0.0.0.0", "::", "localhost"):  # noqa: S104 - compared, not bound
        host = "localhost"
    return f"http://{f'[{host}]' if ':' in host else host}:{core.worker_port}"


def uv_environment() -> dict[str, str]:
    """Say what uv is started with: all of the environment, and no more patience with an index than a caller has."""
    # By itself uv tries four times, and says after 11 s that a connection is refused.
    return {"UV_HTTP_RETRIES": "1", **os.environ}


def build_environment() -> dict[str, str]:
    """Say what a build from source may see of the environment: how to reach the index, and how to find programs."""
    names = ("PATH", "LANG", "http_proxy", "https_proxy", "no_proxy", "all_proxy")
    prefixes = ("UV_", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
    return {
        name: value
        for name, value in uv_environment().items()
        if name in names or name.startswith(prefixes)
    }


def cluster_from_environment() -> str | None:
    """Say which cluster ``$OLCORE_CLUSTER`` names, if any."""
    return os.environ.get("OLCORE_CLUSTER") or None


def is_debug_hooks() -> bool:
    """Say whether ``$OLCORE_DEBUG_HOOKS`` asks for each hook call to be printed."""
    return os.environ.get("OLCORE_DEBUG_HOOKS", "0") not in ("", "0")
