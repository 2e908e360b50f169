"""Registers this plugin's backends with olcore."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ol_registry_s3.settings import S3Settings
from olcore import hookimpl
from olcore.interfaces import (
    Registry,
    RegistryAddress,
    RegistryBackend,
    RegistryContext,
    RegistryServer,
    ServerContext,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


def _make(context: RegistryContext, settings: S3Settings) -> Registry:
    # Imported here, because a worker that uses another registry must not pay for fsspec.
    from ol_registry_s3.registry import S3Registry

    return S3Registry(context, settings)


def _why_unusable(settings: S3Settings) -> str | None:
    # Imported here for the same reason.
    from ol_registry_s3.store import why_unusable

    return why_unusable(settings)


def _addressed(address: RegistryAddress, settings: S3Settings) -> S3Settings:
    # Imported here for the same reason.
    from ol_registry_s3.server import addressed

    return addressed(address, settings)


def _serve(context: ServerContext, settings: S3Settings) -> RegistryServer:
    # Imported here for the same reason.
    from ol_registry_s3.server import serve

    return serve(context, settings)


@hookimpl
def ol_registry_backends() -> Sequence[RegistryBackend[Any]]:
    """Offer ``s3``."""
    return [
        RegistryBackend(
            name="s3",
            summary="handlers are bundles in an S3 bucket or at another fsspec URL",
            settings=S3Settings,
            make=_make,
            why_unusable=_why_unusable,
            addressed=_addressed,
            serve=_serve,
        )
    ]
