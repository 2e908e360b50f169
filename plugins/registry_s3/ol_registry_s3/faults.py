"""Says what the errors of fsspec's backends mean for a registry; the only place that knows them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from olcore.errors import OlcoreError, RegistryError, RegistryUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ol_registry_s3.settings import S3Settings

_RETRY_AFTER_S = 5.0


class Missing(Exception):  # noqa: N818  # no error yet: the caller says which one it is
    """There is no such object."""


class Nowhere(Exception):  # noqa: N818  # ditto
    """The folder that everything is kept in does not exist."""


class Conflict(Exception):  # noqa: N818  # ditto
    """A condition on a write did not hold."""


class _Fault(msgspec.Struct, frozen=True):
    kind: type[OlcoreError]
    says: str = ""
    hint: str | None = None


_KEYS = "check key and secret, and that the clock is right"
_ALLOWED = "the keys must be allowed to list, get, put and delete there"
_BUSY = _Fault(RegistryUnavailableError, "is overloaded")
_MOVED = _Fault(RegistryUnavailableError, "is in another region", "set region")

_BY_CODE = {
    "NoSuchBucket": _Fault(
        RegistryUnavailableError, "the bucket does not exist", "make it, or correct url"
    ),
    "InvalidBucketName": _Fault(RegistryUnavailableError, "is no name of a bucket", "correct url"),
    "AccessDenied": _Fault(RegistryUnavailableError, "refuses us", _ALLOWED),
    "403": _Fault(RegistryUnavailableError, "refuses us", f"{_KEYS}; {_ALLOWED}"),
    "401": _Fault(RegistryUnavailableError, "refuses us", _KEYS),
    "InvalidAccessKeyId": _Fault(RegistryUnavailableError, "does not know the key", _KEYS),
    "SignatureDoesNotMatch": _Fault(RegistryUnavailableError, "refuses the secret", _KEYS),
    "RequestTimeTooSkewed": _Fault(RegistryUnavailableError, "has another time than we", _KEYS),
    "ExpiredToken": _Fault(RegistryUnavailableError, "says that the keys have expired", _KEYS),
    "SlowDown": _BUSY,
    "ServiceUnavailable": _BUSY,
    "503": _BUSY,
    "429": _BUSY,
    "InternalError": _Fault(RegistryUnavailableError, "has a fault"),
    "500": _Fault(RegistryUnavailableError, "has a fault"),
    "502": _Fault(RegistryUnavailableError, "has a fault"),
    "504": _Fault(RegistryUnavailableError, "has a fault"),
    "RequestTimeout": _Fault(RegistryUnavailableError, "found us too slow"),
    "301": _MOVED,
    "PermanentRedirect": _MOVED,
    "AuthorizationHeaderMalformed": _MOVED,
}
"""By the code of an S3 answer; for a HEAD, which has no body, the code is the status."""

_DOWN = _Fault(RegistryUnavailableError, "does not answer", "check endpoint, and that it runs")
_BROKE_OFF = _Fault(RegistryUnavailableError, "broke off in the middle of an answer")
_BY_TYPE = {
    "NoCredentialsError": _Fault(
        RegistryUnavailableError, "there are no keys", "set key and secret, or the AWS environment"
    ),
    "PartialCredentialsError": _Fault(RegistryUnavailableError, "half of the keys is missing"),
    "TokenRetrievalError": _Fault(RegistryUnavailableError, "there are no keys", _KEYS),
    # aiohttp's, all but those of the answer itself.
    "ClientConnectionError": _DOWN,
    "EndpointConnectionError": _DOWN,
    "ConnectTimeoutError": _DOWN,
    "ReadTimeoutError": _DOWN,
    "ConnectionClosedError": _BROKE_OFF,
    "ResponseStreamingError": _BROKE_OFF,
    "IncompleteReadError": _BROKE_OFF,
    "ClientPayloadError": _BROKE_OFF,
    "SSLError": _Fault(RegistryUnavailableError, "has no valid certificate", "see verify"),
    "ClientConnectorCertificateError": _Fault(
        RegistryUnavailableError, "has no valid certificate", "see verify"
    ),
    "SSLCertVerificationError": _Fault(
        RegistryUnavailableError, "has no valid certificate", "see verify"
    ),
    "HTTPClientError": _DOWN,
    "ClientError": _Fault(RegistryError, "answered with an error"),
    "PermissionError": _Fault(RegistryUnavailableError, "refuses us", _ALLOWED),
    "ConnectionError": _DOWN,
    "FSTimeoutError": _DOWN,
    "TimeoutError": _DOWN,
    "ParamValidationError": _Fault(RegistryUnavailableError, "is no valid place", "correct url"),
    "ValueError": _Fault(RegistryError, "cannot be used"),
    "Nowhere": _Fault(
        RegistryUnavailableError, "the folder does not exist", "make it, mount it, or correct url"
    ),
    "FileNotFoundError": _DOWN,  # see _NO_ANSWER
    "OSError": _Fault(RegistryUnavailableError, "has a fault"),
}
"""By the name of an exception's class or of one that it derives from; names, because each backend has its own package."""

_NO_ANSWER = frozenset(("ClientConnectionError", "TimeoutError"))
_OPTIONS = _Fault(RegistryError, "cannot be used", "check options")
_CONFLICTS = frozenset(("PreconditionFailed", "412", "ConditionalRequestConflict", "409"))


def translate(error: Exception, where: str, settings: S3Settings) -> Exception:
    """Make the error that a registry may raise, or Missing or Conflict, out of one of a backend's.

    Args:
        error: What a backend raised.
        where: The URL that was asked, without credentials.
        settings: Hold texts that must not stand in a message, and maybe an option that the backend does not know.
    """
    if isinstance(error, OlcoreError | Missing | Conflict):
        return error
    chain = list(_chain(error))
    codes = [code for each in chain if (code := _code(each))]
    if any(code in _CONFLICTS for code in codes) or isinstance(error, FileExistsError):
        return Conflict()
    found = next((_BY_CODE[code] for code in codes if code in _BY_CODE), None)
    names = [kind.__name__ for each in chain for kind in type(each).__mro__]
    # fsspec's HTTP takes a server that does not answer for a missing file.
    if found is None and isinstance(error, FileNotFoundError) and _NO_ANSWER.isdisjoint(names):
        return Missing()
    if found is None:
        found = next((_BY_TYPE[name] for name in names if name in _BY_TYPE), None)
    if found is None and isinstance(error, TypeError) and settings.options:
        found = _OPTIONS  # the backend hands them on to whatever it calls first
    if found is None:
        return error  # a bug, which keeps its traceback
    # Some explain themselves in several lines.
    said = _redacted(f"{where} {found.says}: {' '.join(str(error).split())}", settings.secrets())
    retry = _RETRY_AFTER_S if found.kind is RegistryUnavailableError else None
    return found.kind(said.rstrip(". "), hint=found.hint, retry_after_s=retry)


def too_slow(where: str, timeout_s: float) -> RegistryUnavailableError:
    """Make the error for an answer that did not come in time."""
    return RegistryUnavailableError(
        f"{where} did not answer within {timeout_s:g} s",
        hint="registry_timeout_s, or --timeout of a command, says how long we wait",
        retry_after_s=_RETRY_AFTER_S,
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    # s3fs sets the cause in some places, and raises inside an except in others.
    each: BaseException | None = error
    for _ in range(8):
        if each is None or isinstance(each, asyncio.CancelledError):
            return
        yield each
        each = each.__cause__ or each.__context__


def _code(error: BaseException) -> str:
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    # As aiohttp, Azure and Google call it, in this order.
    told = (getattr(error, name, None) for name in ("status", "status_code", "code"))
    return next((str(status) for status in told if isinstance(status, int)), "")


def _redacted(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
