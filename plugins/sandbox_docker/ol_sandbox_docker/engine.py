"""Speaks to one Docker engine, with blocking calls; its foreign errors stop here.

Every method may raise:
    SandboxUnavailableError: The engine does not answer; may be tried again.
    SandboxError: It refuses; the message is its own.
"""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, NotFound
from docker.utils import parse_repository_tag

from olcore.errors import SandboxError, SandboxUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Result = TypeVar("Result")

SCHEME = "unix://"
"""The engine must map folders of this machine, so nothing but a Unix socket leads to one that is of use."""


class NoSuchThingError(SandboxError):
    """The engine has no container, image or network of that name."""


class Engine:
    """A client that connects when it is first needed, and again after the engine was away.

    Args:
        base_url: Its Unix socket, as ``unix:///path``.
        timeout_s: No call may take longer.
    """

    def __init__(self, base_url: str, timeout_s: float) -> None:
        self.base_url = base_url
        self._timeout_s = timeout_s
        self._client: Any = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections; the next call makes new ones."""
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None

    def ping(self) -> None:
        """Ask whether it answers."""
        self._call(lambda api: api.ping())

    def info(self) -> dict[str, Any]:
        """Tell about the engine: its runtimes, its control groups."""
        return self._call(lambda api: dict(api.info()))

    def image(self, name: str) -> dict[str, Any] | None:
        """Describe the image, or return ``None`` when there is none of that name."""
        if not name:
            return None  # which the client would take for a mistake of ours
        try:
            return self._call(lambda api: dict(api.inspect_image(name)))
        except NoSuchThingError:
            return None

    def import_image(self, tar: Iterable[bytes], name: str | None = None) -> str:
        """Make an image of one layer from the chunks of a tar archive, and return its id."""
        repository, tag = split(name) if name else (None, None)
        said = self._call(
            lambda api: str(api.import_image_from_data(tar, repository=repository, tag=tag))
        )
        lines = [json.loads(line) for line in said.splitlines()]
        for line in lines:
            # It has answered 200 before it reads the archive.
            if "error" in line:
                raise SandboxError(f"Docker cannot import the archive: {line['error']}")
        return str(lines[-1]["status"])

    def pull(self, name: str) -> Iterator[dict[str, Any]]:
        """Pull an image, and yield what the engine says of its progress."""
        repository, tag = split(name)
        stream: Iterable[dict[str, Any]] = self._call(
            lambda api: api.pull(repository, tag=tag, stream=True, decode=True)
        )
        with self._translated():
            for said in stream:
                if "error" in said:
                    raise SandboxError(f"cannot pull {name!r}: {said['error']}")
                yield said

    def tag(self, name: str, other: str) -> None:
        """Give the image *name* one more name."""
        repository, tag = split(other)
        self._call(lambda api: api.tag(name, repository, tag))

    def remove_image(self, image: str) -> None:
        """Remove an image, unless a container uses it."""
        self._call(lambda api: api.remove_image(image))

    def export(self, container: str) -> Iterator[bytes]:
        """Yield the container's file system as the chunks of a tar archive."""
        stream: Iterable[bytes] = self._call(lambda api: api.export(container))
        with self._translated():
            yield from stream

    def create(self, name: str, config: dict[str, Any]) -> str:
        """Create a container from the engine's own JSON, and return its id."""
        return self._call(lambda api: str(api.create_container_from_config(config, name)["Id"]))

    def start(self, container: str) -> None:
        """Start a container that was created."""
        self._call(lambda api: api.start(container))

    def inspect(self, container: str) -> dict[str, Any]:
        """Describe a container."""
        return self._call(lambda api: dict(api.inspect_container(container)))

    def wait(self, container: str) -> int:
        """Wait until the engine has noticed that the container ended, and return its status."""
        return self._call(lambda api: int(api.wait(container)["StatusCode"]))

    def output(self, container: str) -> bytes:
        """What the container printed, when its log is kept."""
        return self._call(lambda api: bytes(api.logs(container)))

    def pause(self, container: str) -> None:
        """Freeze its processes."""
        self._call(lambda api: api.pause(container))

    def unpause(self, container: str) -> None:
        """Let them run on."""
        self._call(lambda api: api.unpause(container))

    def stats(self, container: str) -> dict[str, Any]:
        """Measure it once; without ``one_shot`` the engine would take two samples a second apart."""
        return self._call(lambda api: dict(api.stats(container, stream=False, one_shot=True)))

    def remove(self, container: str) -> bool:
        """Kill and remove a container; returns whether there was one."""
        try:
            self._call(lambda api: api.remove_container(container, force=True, v=True))
        except NoSuchThingError:
            return False
        return True

    def containers(self, labels: dict[str, str]) -> list[dict[str, Any]]:
        """List the containers with these labels, whatever their state."""
        wanted = [f"{key}={value}" for key, value in labels.items()]
        return self._call(lambda api: list(api.containers(all=True, filters={"label": wanted})))

    def make_network(self, name: str, options: dict[str, str], labels: dict[str, str]) -> None:
        """Make a bridge network."""
        self._call(
            lambda api: api.create_network(name, driver="bridge", options=options, labels=labels)
        )

    def networks(self, labels: dict[str, str]) -> list[dict[str, Any]]:
        """List the networks with these labels."""
        wanted = [f"{key}={value}" for key, value in labels.items()]
        return self._call(lambda api: list(api.networks(filters={"label": wanted})))

    def remove_network(self, name: str) -> bool:
        """Remove a network; returns whether there was one."""
        try:
            self._call(lambda api: api.remove_network(name))
        except NoSuchThingError:
            return False
        return True

    def _knock(self) -> None:
        # Each call first sees whether somebody listens, which costs 0.1 ms: docker's client leaks the socket of a
        # connection that fails, and says less about why.
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(self._timeout_s)
            probe.connect(self.base_url.removeprefix(SCHEME))

    def _connected(self) -> Any:  # noqa: ANN401 - docker ships no types
        with self._lock:
            if self._client is None:
                self._client = docker.APIClient(
                    base_url=self.base_url, timeout=self._timeout_s, version="auto"
                )
            return self._client

    def _call(self, ask: Callable[[Any], Result]) -> Result:
        with self._translated():
            self._knock()
            return ask(self._connected())

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except NotFound as error:
            raise NoSuchThingError(f"Docker: {error.explanation}") from error
        except APIError as error:
            raise SandboxError(f"Docker: {error.explanation or error}") from error
        except (requests.RequestException, DockerException, OSError) as error:
            # The last two: the client asks for the engine's version when it is made, and wraps what that meets.
            raise SandboxUnavailableError(
                f"the Docker engine at {self.base_url} does not answer: {error}",
                hint="start the engine, or set docker.base_url",
                retry_after_s=1.0,
            ) from error


def split(name: str) -> tuple[str, str]:
    """Part an image's name from its tag or digest; a colon before the last slash belongs to a registry's port."""
    repository, tag = parse_repository_tag(name)
    return repository, tag or "latest"
