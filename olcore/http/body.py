"""Reads a request's body whole, within bounds, and never looks into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from olcore.errors import EventTooLargeError, RequestError

if TYPE_CHECKING:
    import falcon.asgi

_WORTH_DISCARDING = 8 << 20


async def read(req: falcon.asgi.Request, limit: int) -> bytes:
    """Read the body of *req*.

    Args:
        req: The request.
        limit: How many bytes it may have.

    Raises:
        EventTooLargeError: It has more.
        RequestError: The client broke off.
    """
    length = req.content_length
    if length is None:
        return await _read_unannounced(req, limit)
    if length > limit:
        if length - limit <= _WORTH_DISCARDING:
            # A server that closes a connection with unread bytes in it resets it, and the client may lose the reply
            # that tells why. Reading on is cheap up to a point.
            await req.stream.exhaust()
        raise _too_large(f"of {length} bytes", limit)
    body = await req.stream.readall()
    if len(body) < length:
        raise RequestError(f"the body ended after {len(body)} of {length} bytes")
    return body


async def _read_unannounced(req: falcon.asgi.Request, limit: int) -> bytes:
    chunks = []
    size = 0
    async for chunk in req.stream:
        size += len(chunk)
        if size > limit:
            raise _too_large("", limit)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(what: str, limit: int) -> EventTooLargeError:
    said = " ".join(filter(None, ("the body", what, "is over the limit of", str(limit))))
    return EventTooLargeError(said, hint="limits.max_body_mb sets the limit")
