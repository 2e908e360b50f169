"""The error tree: everything olcore raises on purpose, with the HTTP status and the exit code each one becomes.

::

    OlcoreError                      500  internal
    ├── ConfigError                  500  bad_config         a key, a type or a value in a configuration
    ├── ClusterError                 500  bad_cluster        the cluster folder, or a worker of it, is not in the needed state
    ├── PluginError                  500  bad_plugin         a plugin breaks the rules of hookspecs.py
    │   ├── PluginNotFoundError      500  no_such_backend    nothing installed offers the backend
    │   └── BackendUnusableError     500  backend_unusable   installed, and cannot run on this machine
    ├── RequestError                 400  bad_request        the caller can mend it
    │   ├── BadNameError             400  bad_name           not a name a handler can have
    │   ├── BadEventError            400  bad_event          the body is not JSON
    │   ├── BadBundleError           400  bad_bundle         what was uploaded is not a handler
    │   ├── UnauthorizedError        401  unauthorized       the API key is missing or wrong
    │   ├── HandlerNotFoundError     404  no_such_handler    the registry has no handler of that name
    │   ├── ConflictError            412  version_conflict   the handler changed meanwhile
    │   ├── EventTooLargeError       413  event_too_large    the body is over max_body_mb
    │   └── QueueFullError           429  queue_full         every instance is busy and the queue is full
    ├── HandlerError                 500  handler_error      the handler's author can mend it
    │   ├── HandlerInvalidError      500  handler_invalid    no entry file, a bad olcore.toml, a bad bundle
    │   ├── HandlerLoadError         500  load_failed        importing the handler raised
    │   ├── HandlerRaisedError       500  handler_raised     handler(event) raised
    │   ├── ResultError              500  bad_result         the result is not JSON, or is over max_result_mb
    │   └── PackagesError            500  packages_failed    packages.txt cannot be installed
    ├── SandboxError                 502  sandbox_failed     a sandbox could not be made or used
    │   ├── SandboxDeadError         502  sandbox_dead       used after its death
    │   ├── InstanceDiedError        502  instance_died      it died while it served this request
    │   ├── SandboxUnavailableError  503  sandbox_unavailable  the engine is away; it may come back
    │   └── InstanceTimeoutError     504  timeout            the handler ran past limits.timeout_s
    ├── RegistryError                500  registry_failed    the registry answered with something unusable
    │   └── RegistryUnavailableError 503  registry_unavailable  it does not answer, or refuses us
    └── DrainingError                503  draining           the worker is stopping

A message names the value and has no final dot; ``hint`` is the way out for who can act on it.
"""

from __future__ import annotations

from typing import ClassVar


class OlcoreError(Exception):
    """The root of the tree.

    Args:
        message: One sentence that names the value at fault, without a final dot.
        hint: What to do about it, if there is something.
        retry_after_s: Seconds after which the same call may succeed; becomes ``Retry-After``.
        details: More fields for the error body, each of a JSON type.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        retry_after_s: float | None = None,
        details: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry_after_s = retry_after_s
        self.details: dict[str, object] = details or {}


class ConfigError(OlcoreError):
    """A configuration has an unknown key, a wrong type or a value out of range."""

    code = "bad_config"


class ClusterError(OlcoreError):
    """The cluster folder, or a worker of it, is not in the state that the command needs."""

    code = "bad_cluster"


class PluginError(OlcoreError):
    """A plugin breaks a rule of the hook specifications."""

    code = "bad_plugin"


class PluginNotFoundError(PluginError):
    """No installed plugin offers the backend."""

    code = "no_such_backend"


class BackendUnusableError(PluginError):
    """The backend is installed, and cannot run on this machine."""

    code = "backend_unusable"


class RequestError(OlcoreError):
    """The caller can mend it."""

    status = 400
    code = "bad_request"


class BadNameError(RequestError):
    """Not a name that a handler can have."""

    code = "bad_name"


class BadEventError(RequestError):
    """The body is not JSON; ``details["position"]`` is the offset in characters."""

    code = "bad_event"


class BadBundleError(RequestError):
    """What was uploaded is not a handler; says what is wrong with it."""

    code = "bad_bundle"


class UnauthorizedError(RequestError):
    """The API key is missing or wrong."""

    status = 401
    code = "unauthorized"


class HandlerNotFoundError(RequestError):
    """The registry has no handler of that name."""

    status = 404
    code = "no_such_handler"


class ConflictError(RequestError):
    """The handler's version in the registry is not the one that the caller named."""

    status = 412
    code = "version_conflict"


class EventTooLargeError(RequestError):
    """The body is over ``limits.max_body_mb``."""

    status = 413
    code = "event_too_large"


class QueueFullError(RequestError):
    """Every instance is busy and the queue is full; comes with ``retry_after_s``."""

    status = 429
    code = "queue_full"


class HandlerError(OlcoreError):
    """The handler's author can mend it."""

    code = "handler_error"


class HandlerInvalidError(HandlerError):
    """What the registry holds under that name is not a handler."""

    code = "handler_invalid"


class HandlerLoadError(HandlerError):
    """Importing the handler raised; ``details`` holds ``type`` and ``traceback``."""

    code = "load_failed"


class HandlerRaisedError(HandlerError):
    """``handler(event)`` raised; ``details`` holds ``type`` and ``traceback``."""

    code = "handler_raised"


class ResultError(HandlerError):
    """The result cannot be written as JSON, or is over ``limits.max_result_mb``."""

    code = "bad_result"


class PackagesError(HandlerError):
    """The handler's packages cannot be resolved or installed."""

    code = "packages_failed"


class SandboxError(OlcoreError):
    """A sandbox could not be made or used."""

    status = 502
    code = "sandbox_failed"


class SandboxDeadError(SandboxError):
    """The sandbox was used after its death; the message says how it died."""

    code = "sandbox_dead"


class InstanceDiedError(SandboxError):
    """The instance died while it served this request; ``details["death"]`` says how."""

    code = "instance_died"


class SandboxUnavailableError(SandboxError):
    """What makes sandboxes (an engine, a zygote) is away and may come back."""

    status = 503
    code = "sandbox_unavailable"


class InstanceTimeoutError(SandboxError):
    """The handler ran past ``limits.timeout_s``; its instance is destroyed."""

    status = 504
    code = "timeout"


class RegistryError(OlcoreError):
    """The registry answered with something unusable."""

    code = "registry_failed"


class RegistryUnavailableError(RegistryError):
    """The registry does not answer, or refuses us."""

    status = 503
    code = "registry_unavailable"


class DrainingError(OlcoreError):
    """The worker is stopping and takes no new requests."""

    status = 503
    code = "draining"
