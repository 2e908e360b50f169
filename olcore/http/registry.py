"""Answers ``/registry/``: handlers are uploaded, fetched, listed and removed through a worker, by who has its API key.

The key opens every handler of the registry, so there is no such path unless one is configured.
"""

from __future__ import annotations

import asyncio
import hmac
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import falcon
import falcon.asgi
import msgspec

from olcore import bundles
from olcore.errors import (
    ConflictError,
    EventTooLargeError,
    HandlerNotFoundError,
    RequestError,
    UnauthorizedError,
)
from olcore.handlers import uploads
from olcore.handlers.manager import check_name
from olcore.handlers.options import Options
from olcore.interfaces import Registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from olcore.http.gate import Gate
    from olcore.http.trace import Tracer
    from olcore.interfaces import HandlerVersion

BUNDLE_TYPE = "application/gzip"

_CHUNK = 1 << 18
_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryAccess:
    """The registry that ``/registry/`` gives access to."""

    registry: Registry
    """Started."""
    api_key: str = field(repr=False)
    options: Options
    """Bounds for what is uploaded."""


class _Resource:
    def __init__(self, access: RegistryAccess, gate: Gate, tracer: Tracer) -> None:
        self._registry = access.registry
        self._options = access.options
        self._key = access.api_key.encode()
        self._gate = gate
        self._tracer = tracer

    def _begin(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        self._tracer.begin(req)
        scheme, _, key = (req.get_header("Authorization") or "").partition(" ")
        # In constant time, so that how long a refusal takes says nothing about how much of the key was right.
        is_right = hmac.compare_digest(key.strip().encode(), self._key)
        if not is_right or scheme.lower() != "bearer":
            resp.set_header("WWW-Authenticate", "Bearer")
            raise UnauthorizedError(
                "the API key is missing or wrong", hint="send it as 'Authorization: Bearer KEY'"
            )
        if not self._gate.is_open:
            raise self._gate.draining()

    def _end(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, value: object) -> None:
        self._tracer.end(req, resp)
        resp.content_type = falcon.MEDIA_JSON
        resp.data = _encode(value)


class RegistryList(_Resource):
    """``GET /registry/``: what there is."""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """List every handler."""
        self._begin(req, resp)
        found = await self._registry.names()
        self._end(req, resp, {"handlers": [_told(version) for version in found]})


class RegistryHandler(_Resource):
    """``/registry/<name>``: one handler."""

    async def on_put(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, name: str) -> None:
        """Store the bundle in the body: all of it or nothing, and only what could be run."""
        self._begin(req, resp)
        check_name(name)
        with tempfile.TemporaryDirectory(prefix="olcore-upload-") as folder:
            bundle = Path(folder) / "bundle.tar.gz"
            with bundle.open("xb") as file:
                await self._receive(req, file)
            await asyncio.to_thread(uploads.check_bundle, bundle, self._options, "the bundle")
            version = await self._registry.publish(name, bundle, await self._condition(req, name))
        resp.status = falcon.HTTP_201
        resp.set_header("ETag", f'"{version.version}"')
        self._end(req, resp, _told(version))

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, name: str) -> None:
        """Answer with the handler's newest code as a bundle."""
        self._begin(req, resp)
        check_name(name)
        found = await self._registry.lookup(name)
        with tempfile.TemporaryDirectory(prefix="olcore-download-") as folder:
            code, bundle = Path(folder) / "code", Path(folder) / "bundle.tar.gz"
            code.mkdir()
            version = await self._registry.pull(found, code)
            await asyncio.to_thread(bundles.pack, code, bundle, uploads.bounds(self._options))
            size = bundle.stat().st_size
            # Stays readable when its name is gone, which is at the end of this block.
            file = bundle.open("rb")
        self._tracer.end(req, resp)
        resp.content_type = BUNDLE_TYPE
        resp.set_header("ETag", f'"{version.version}"')
        resp.set_stream(_chunks(file), size)

    async def on_delete(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, name: str
    ) -> None:
        """Remove the handler."""
        self._begin(req, resp)
        check_name(name)
        await self._registry.remove(name, await self._condition(req, name))
        self._end(req, resp, {"name": name})

    async def _condition(self, req: falcon.asgi.Request, name: str) -> str | None:
        """Say which version the client requires: none at all, a certain one, or whatever there is (RFC 9110, 13.1)."""
        if req.get_header("If-None-Match") == "*":
            return ""
        wanted = req.get_header("If-Match")
        if wanted is None:
            return None
        if wanted.strip() != "*":
            return wanted.strip().strip('"')
        try:
            return (await self._registry.lookup(name)).version
        except HandlerNotFoundError as error:
            raise ConflictError(f"there is no version of {name!r}") from error

    async def _receive(self, req: falcon.asgi.Request, file: IO[bytes]) -> None:
        limit = self._options.max_bundle_mb << 20
        if (req.content_length or 0) > limit:
            raise self._too_large()
        size = 0
        async for chunk in req.stream:
            size += len(chunk)
            if size > limit:
                raise self._too_large()
            await asyncio.to_thread(file.write, chunk)
        if size < (req.content_length or 0):
            raise RequestError(f"the body ended after {size} of {req.content_length} bytes")

    def _too_large(self) -> EventTooLargeError:
        return EventTooLargeError(
            f"the bundle is over the limit of {self._options.max_bundle_mb} MiB",
            hint="max_bundle_mb sets the limit",
        )


async def _chunks(file: IO[bytes]) -> AsyncIterator[bytes]:
    with file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk


def _told(version: HandlerVersion) -> dict[str, str]:
    return {"name": version.name, "version": version.version}
