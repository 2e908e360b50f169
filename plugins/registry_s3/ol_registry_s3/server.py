"""Says how to start an S3 server for a cluster, and how to reach one."""

from __future__ import annotations

import importlib.util
import secrets
import shlex
import shutil
import socket
import string
import sys
from typing import TYPE_CHECKING

import msgspec

from ol_registry_s3.faults import translate
from ol_registry_s3.store import S3_PROTOCOLS, Store, protocol_of
from olcore.errors import BackendUnusableError, RegistryUnavailableError
from olcore.interfaces import RegistryAddress, RegistryServer, ServerContext

if TYPE_CHECKING:
    from ol_registry_s3.settings import S3Settings

URL = "s3://registry"
"""The bucket is called as OpenLambda's."""

_REGION = "us-east-1"
_ASK_TIMEOUT_S = 2.0
_HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - connected to, not bound
_KEY_LETTERS = string.ascii_uppercase + string.digits

_COMMANDS = {
    "minio": "minio server --address {host}:{port} {folder}",
    "weed": "weed server -ip={host} -s3 -s3.port={port} -dir={folder}",
}


def addressed(address: RegistryAddress, settings: S3Settings) -> S3Settings:
    """Point *settings* to the S3 server at *address*."""
    is_url = "://" in address.address
    return msgspec.structs.replace(
        settings,
        url=settings.url if protocol_of(settings.url) in S3_PROTOCOLS else URL,
        endpoint=address.address if is_url else f"http://{address.address}",
        key=address.access_key or settings.key,
        secret=address.secret_key or settings.secret,
        region=settings.region or _REGION,
    )


def serve(context: ServerContext, settings: S3Settings) -> RegistryServer:
    """Say how to start the server that ``settings.server`` names.

    Raises:
        BackendUnusableError: It is not installed.
    """
    endpoint = _endpoint(context)
    key, secret, generated = _keys(context, settings)
    patch: dict[str, object] = {
        "url": URL,
        "endpoint": endpoint,
        "key": key,
        "secret": secret,
        "region": _REGION,
    }
    there = msgspec.convert({**msgspec.to_builtins(settings), **patch}, type(settings))
    return RegistryServer(
        command=_command(context, settings.server),
        environment={
            f"{prefix}{name}": value
            for prefix, names in (
                ("NANIO_", ("ACCESS_KEY", "SECRET_KEY")),
                ("MINIO_", ("ROOT_USER", "ROOT_PASSWORD")),
                ("AWS_", ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")),
            )
            for name, value in zip(names, (key, secret), strict=True)
        },
        url=endpoint,
        settings=patch,
        is_ready=lambda: _is_ready(context, there),
        generated=generated,
    )


def _endpoint(context: ServerContext) -> str:
    # The workers of the cluster are on this machine; what listens everywhere listens here.
    host = _HERE.get(context.host, context.host)
    return f"http://[{host}]:{context.port}" if ":" in host else f"http://{host}:{context.port}"


def _keys(context: ServerContext, settings: S3Settings) -> tuple[str, str, dict[str, str]]:
    # A server that was stopped and is started again keeps its keys; those of another server are not given to it.
    was_here = settings.endpoint == _endpoint(context)
    generated: dict[str, str] = {}
    key = context.access_key or (settings.key if was_here else "")
    secret = context.secret_key or (settings.secret if was_here else "")
    if not key:
        key = generated["access-key"] = "".join(secrets.choice(_KEY_LETTERS) for _ in range(20))
    if not secret:
        secret = generated["secret-key"] = secrets.token_urlsafe(30)
    return key, secret, generated


def _command(context: ServerContext, server: str) -> list[str]:
    if server == "nanio":
        if importlib.util.find_spec("nanio") is None:
            raise BackendUnusableError(
                "the S3 server 'nanio' is not installed",
                hint="pip install 'ol-registry-s3[server]', or set s3.server to minio, weed or a command",
            )
        command = [sys.executable, "-P", "-m", "ol_registry_s3.nanio_server", str(context.folder)]
        command += ["--workers", "1", "--no-access-log", "--region", _REGION]
        return [*command, "--host", context.host, "--port", str(context.port)]
    values = {"host": context.host, "port": context.port, "folder": context.folder}
    try:
        command = [part.format(**values) for part in shlex.split(_COMMANDS.get(server, server))]
    except (ValueError, LookupError) as error:
        raise BackendUnusableError(
            f"s3.server is no command: {server!r} ({error})",
            hint="what stands in braces is one of {host}, {port} and {folder}",
        ) from error
    if not command or shutil.which(command[0]) is None:
        raise BackendUnusableError(
            f"there is no program {(command or [''])[0]!r} to start an S3 server with",
            hint="install it, or set s3.server to nanio",
        )
    return command


def _is_ready(context: ServerContext, settings: S3Settings) -> bool:
    try:
        socket.create_connection((context.host, context.port), _ASK_TIMEOUT_S).close()
    except OSError:
        return False
    store = Store(settings, _ASK_TIMEOUT_S)
    try:
        store.make_bucket()
    except Exception as error:
        told = translate(error, settings.endpoint, settings)
        # Some listen before they can answer.
        if isinstance(told, RegistryUnavailableError):
            return False
        raise told from error
    finally:
        store.close()
    return True
