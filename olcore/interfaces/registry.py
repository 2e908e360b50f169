"""The contract of a registry backend: where handlers are stored, and under which version."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic

import msgspec

from olcore.interfaces.sandbox import Settings


class HandlerVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one handler's code; code of one version never changes."""

    name: str
    version: str
    """The content's identity, such as an etag; ``[A-Za-z0-9._-]``, at most 128 characters, safe in a path."""


class Registry(ABC):
    """Where handlers are stored.

    Names are checked before they come here: ``[A-Za-z0-9._-]``, at most 128 characters, neither ``.`` nor ``..``.
    Every call ends within the backend's own time limit. After ``close`` no method is called.

    Every method may raise:
        RegistryUnavailableError: It does not answer, or refuses us; may be tried again.
        RegistryError: It answers with something unusable.
    """

    remote: bool = False
    """Whether ``lookup`` costs I/O; the core then asks at most every ``registry_cache_ms`` for one name."""
    writable: bool = False
    """Whether ``publish`` and ``remove`` work; both raise RegistryError where it is ``False``."""

    @abstractmethod
    async def start(self) -> None:
        """Prepare; called once, before any other method, inside the running loop."""

    @abstractmethod
    async def close(self) -> None:
        """Undo ``start``; idempotent, never raises."""

    @abstractmethod
    async def lookup(self, name: str) -> HandlerVersion:
        """Say which version of *name* is the newest; on the path of every request, so it must be quick.

        Raises:
            HandlerNotFoundError: There is no handler of that name.
        """

    def peek(self, name: str) -> HandlerVersion | None:  # noqa: ARG002 -- a default for who knows nothing
        """Say what ``lookup`` would say, if that is known for sure without waiting and within microseconds.

        ``None``, as here, sends the caller to ``lookup``; it raises nothing.
        """
        return None

    @abstractmethod
    async def pull(self, version: HandlerVersion, target: Path) -> HandlerVersion:
        """Fill the empty folder *target* with the code, entry file at its top, and say which version that was.

        The answer differs from *version* when the handler changed since the lookup. On failure *target* may hold
        anything: the core removes it. Nothing is written outside *target*, whatever the bundle says.

        Raises:
            HandlerNotFoundError: It is gone by now.
            HandlerInvalidError: The bundle is damaged or unsafe; names the fault and the member.
        """

    @abstractmethod
    async def names(self) -> Sequence[HandlerVersion]:
        """List every handler, sorted by name."""

    @abstractmethod
    async def publish(
        self, name: str, bundle: Path, if_version: str | None = None
    ) -> HandlerVersion:
        """Store the ``.tar.gz`` at *bundle* as the newest version of *name*: all of it or nothing, readers see no half.

        Args:
            name: The handler's name.
            bundle: A bundle that has been validated.
            if_version: Refuse unless this is the present version; ``""`` means that there must be none.

        Raises:
            ConflictError: The present version is another one.
        """

    @abstractmethod
    async def remove(self, name: str, if_version: str | None = None) -> None:
        """Remove *name*.

        Raises:
            HandlerNotFoundError: There is no handler of that name.
            ConflictError: The present version is not *if_version*.
        """


def _usable(_settings: object) -> str | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryBackend(Generic[Settings]):
    """The description of a registry backend; ``make`` imports the heavy part late."""

    name: str
    summary: str
    settings: type[Settings]
    """A msgspec struct with a default for every field."""
    make: Callable[[RegistryContext, Settings], Registry]
    why_unusable: Callable[[Settings], str | None] = _usable
    addressed: Callable[[RegistryAddress, Settings], Settings] | None = None
    """Point settings to another server, for ``olcore upload --address``; ``None`` when there is no such thing as a server."""
    serve: Callable[[ServerContext, Settings], RegistryServer] | None = None
    """Say how ``olcore registry`` starts a server; ``None`` when it cannot. May raise BackendUnusableError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryContext:
    """What a registry backend is told by who uses it: a worker, or a command such as ``upload``."""

    registry_dir: Path
    """The local handler store (``registry_dir`` in the configuration)."""
    timeout_s: float
    """No call may take longer (``registry_timeout_s``)."""
    max_bundle_mb: int
    """Refuse a bundle that unpacks to more MiB."""
    max_bundle_files: int
    """Refuse a bundle with more members."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryAddress:
    """A server and the keys to it, as a user types them; empty where the user said nothing."""

    address: str
    """``HOST:PORT`` or a URL."""
    access_key: str = ""
    secret_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerContext:
    """What a registry server is to be started with."""

    folder: Path
    """Where it keeps its data; exists."""
    host: str
    port: int
    access_key: str
    """Empty, as is ``secret_key``, when the user leaves it to the backend."""
    secret_key: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryServer:
    """A registry server that the core starts in the background, and stops with SIGTERM."""

    command: Sequence[str]
    """Everybody on the machine can read it: no secret stands in it."""
    environment: Mapping[str, str] = field(repr=False)
    """Added to that of the command."""
    url: str
    settings: Mapping[str, object] = field(repr=False)
    """What the backend's settings must be so that workers use it; a merge patch."""
    generated: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Keys that were made up because none were given; shown to the user once, each under the name that it is asked for by."""
    is_ready: Callable[[], bool]
    """Asked again and again while the process lives, until it serves; makes what handlers are stored in, such as a bucket."""
