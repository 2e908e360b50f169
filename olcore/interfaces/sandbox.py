"""The contract of a sandbox backend: a pool that makes sandboxes, each one isolated process tree for one handler.

The rendezvous (docs/reference/guest-protocol.md) is the same for every backend. For each instance the core

1. asks the pool for the scratch folder (``make_scratch``), and puts three things of root's into it: ``server_pipe``, a
   Unix stream socket that the worker listens on, and the files ``stdout`` and ``stderr``;
2. calls ``create``: the pool starts a process tree in which the guest (``olcore.guest``) connects to
   ``/host/server_pipe``; ``create`` need not wait for that, the accepted connection is the sign of readiness;
3. talks to the guest over that connection, and over nothing else;
4. calls ``destroy``, then ``remove_scratch``.

What the pool promises to the handler inside: ``/handler`` (its code) and ``/packages`` are read-only, ``/host`` is the
scratch folder, ``/tmp`` is private, and the process can do nothing that SECURITY.md denies it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import msgspec

Settings = TypeVar("Settings", bound=msgspec.Struct)

Positive = Annotated[int, msgspec.Meta(ge=1)]
AboveZero = Annotated[float, msgspec.Meta(gt=0)]


class Network(StrEnum):
    """What a handler can reach."""

    NONE = "none"
    """Its own loopback only."""
    NAT = "nat"
    """The outside through address translation; no address of the host but DNS, no other instance."""
    HOST = "host"
    """Everything that the host reaches."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one instance may use; the kernel enforces all but the last three."""

    memory_mb: Positive = 128
    """Memory of all its processes, tmpfs contents included, in MiB."""
    cpu_percent: Positive = 100
    """Share of processor time; 100 is one core."""
    max_processes: Positive = 64
    """Processes and threads together."""
    scratch_mb: Positive = 64
    """Size of ``/host`` in MiB."""
    tmp_mb: Positive = 64
    """Size of ``/tmp`` and of ``/dev/shm`` in MiB, each."""
    timeout_s: AboveZero = 30.0
    """Seconds for one call of ``handler(event)``, and for loading the handler."""
    max_body_mb: AboveZero = 6.0
    """Size of a request body in MiB."""
    max_result_mb: AboveZero = 6.0
    """Size of a result in MiB."""


class DeathCause(StrEnum):
    """Why a sandbox is no more."""

    EXITED = "exited"
    SIGNALED = "signaled"
    OUT_OF_MEMORY = "out_of_memory"
    DESTROYED = "destroyed"
    """``destroy`` was called while it lived."""
    LOST = "lost"
    """What ran it (an engine, a zygote) went away, and took it along."""


class Death(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a sandbox ended, as far as the backend can truly say."""

    cause: DeathCause
    exit_code: int | None = None
    """The first process's exit code, for ``EXITED``."""
    signal: str | None = None
    """The signal's name such as ``SIGKILL``, for ``SIGNALED`` and ``OUT_OF_MEMORY``."""
    detail: str = ""
    """One clause for people, such as ``over its limit of 128 MiB``."""

    def __str__(self) -> str:
        """Say it in one clause: ``killed by SIGSEGV``, ``out of memory: over its limit of 128 MiB``."""
        said = {
            DeathCause.EXITED: f"exited with code {self.exit_code}",
            DeathCause.SIGNALED: f"killed by {self.signal}",
            DeathCause.OUT_OF_MEMORY: "out of memory",
            DeathCause.DESTROYED: "destroyed",
            DeathCause.LOST: "lost",
        }[self.cause]
        return f"{said}: {self.detail}" if self.detail else said


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a sandbox uses now."""

    memory_bytes: int
    cpu_s: float
    processes: int


class ZygoteSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One zygote to make: a guest process that has imported modules and waits to be forked."""

    id: str
    """Unique within the worker, safe in a path."""
    folder: Path
    """Exists; receives the zygote's ``stdout`` and ``stderr``."""
    sys_path: Sequence[str] = ()
    """Folders inside the sandbox, below ``/packages`` or ``/handler``, in order."""
    imports: Sequence[str] = ()
    """Modules to import, in order; one that fails makes the zygote fail."""
    code: Path | None = None
    """For a snapshot: the handler's code, mapped to ``/handler``. Such a zygote serves that handler alone."""
    environment: dict[str, str] = msgspec.field(default_factory=dict)
    """For a snapshot: the handler's own environment. Empty for a zygote that several handlers share."""


class ImportRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What one import cost, as measured inside."""

    module: str
    file: str | None
    """Where it came from; ``None`` for a module without a file."""
    self_us: int
    """Microseconds without the imports below it."""
    self_kb: int
    """Growth of the resident set in KiB without the imports below it; 0 where it is not known."""


class Zygote(ABC):
    """A process with modules imported, from which ``create`` forks when ``SandboxSpec.zygote`` names it.

    Destroying is idempotent and never raises. Sandboxes forked from it outlive nothing: destroying a zygote that has
    live descendants kills them, so ask ``descendants`` first.
    """

    id: str
    imported: Sequence[ImportRecord]
    """What its imports cost, in the order in which they ended."""
    missed: frozenset[str]
    """Modules that were looked for while importing and not found."""
    memory_bytes: int
    """Its resident set when it became ready, less what it shares with its parent."""

    @property
    @abstractmethod
    def descendants(self) -> int:
        """How many live sandboxes and zygotes were forked from it, directly or not."""

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether it can be forked."""

    @abstractmethod
    async def destroy(self) -> None:
        """Kill it and whatever was forked from it, and wait until all is gone."""


class SandboxSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One sandbox to make. It holds no secret: environment and event travel over the connection."""

    id: str
    """Unique within the worker, safe in a path and in a cgroup's name."""
    handler: str
    """The handler's name, for labels."""
    code: Path
    """The folder mapped to ``/handler``."""
    scratch: Path
    """The folder mapped to ``/host``, from ``make_scratch``, with ``server_pipe``, ``stdout`` and ``stderr`` in it."""
    limits: Limits
    network: Network
    packages: Path | None = None
    """The folder mapped to ``/packages``, if any."""
    zygote: Zygote | None = None
    """Fork from this one; ``None`` is the pool's choice, and the only value for a pool that is not a ``ZygotePool``."""


class Sandbox(ABC):
    """One isolated process tree that serves one handler.

    ``destroy`` is idempotent and never raises. After death, however it came, every other method but ``wait`` raises
    SandboxDeadError. Calls on one sandbox come one at a time, except ``wait`` and ``destroy``, which may come at any time.
    """

    id: str

    @abstractmethod
    async def wait(self) -> Death:
        """Wait until it is dead, and say how it died; any number of callers, before and after."""

    @abstractmethod
    async def pause(self) -> None:
        """Stop all its processes where they stand; returns when none runs any more. Pausing twice is pausing once."""

    @abstractmethod
    async def resume(self) -> None:
        """Let them run on. Resuming what is not paused does nothing."""

    @abstractmethod
    async def usage(self) -> Usage:
        """Measure what it uses now, paused or not."""

    @abstractmethod
    async def destroy(self) -> None:
        """Kill every process of it, free what it held, and return when all is gone."""


class SandboxPool(ABC):
    """Makes the sandboxes of one worker; started once and closed once."""

    @abstractmethod
    async def start(self) -> None:
        """Prepare what sandboxes need. What a crashed worker of the same name left has been cleaned before.

        Raises:
            BackendUnusableError: The machine lacks something; nothing is left half-made.
            SandboxUnavailableError: The engine does not answer.
        """

    @abstractmethod
    async def close(self) -> None:
        """Destroy every sandbox and undo everything; idempotent, never raises."""

    @abstractmethod
    async def make_scratch(self, folder: Path, limits: Limits) -> None:
        """Make *folder*, which does not exist and whose parent does: root's, mode 1777, bounded to ``limits.scratch_mb``.

        Mode 1777 lets any uid write, and none replace what the worker made. The bound is the kernel's where the backend
        can have it; the host can look into the folder.
        """

    @abstractmethod
    async def remove_scratch(self, folder: Path) -> None:
        """Remove *folder* and all in it, following no link; idempotent, never raises."""

    @abstractmethod
    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Start a sandbox; it may die at once, which ``wait`` then tells. On failure nothing of it is left.

        Raises:
            SandboxError: It cannot be made; says why.
            SandboxUnavailableError: What makes sandboxes is away; may be tried again.
        """

    @abstractmethod
    async def probe(self) -> GuestInfo:
        """Say which Python runs inside; asked once after ``start``."""


class GuestInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The interpreter inside the sandboxes; what wheels must fit."""

    python: str
    """Full version such as ``3.11.2``."""
    implementation: str
    """``cpython`` and so on."""
    machine: str
    """As ``uname -m`` says it."""
    libc: str
    """``glibc 2.36``, or ``musl 1.2`` where there is no glibc."""


class ZygotePool(SandboxPool):
    """A pool whose sandboxes can be forked from processes that have imported things already."""

    @abstractmethod
    async def create_zygote(self, spec: ZygoteSpec, parent: Zygote | None) -> Zygote:
        """Make a zygote from *parent* (``None``: from the empty root zygote), and return when its imports are done.

        Raises:
            SandboxError: An import failed or the process died; the message holds the last line of its stderr.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """What a backend is told about the worker that uses it."""

    cluster_name: str
    """The cluster's absolute path unless configured otherwise; a label, never a path to open."""
    worker_name: str
    """``worker-0`` and so on; unique within the cluster."""
    worker_dir: Path
    """The worker's own state; a backend may use the folder ``worker_dir / <backend name>`` as it likes."""
    base_dir: Path
    """The cluster's ``base`` folder; empty means that the backend picks its default root file system."""
    packages_dir: Path
    """The folder mapped to ``/packages``."""
    limits: Limits
    """The cluster's default limits."""
    network: Network
    """The cluster's default network."""


def _usable(_settings: object) -> str | None:
    return None


def _nothing_to_clean(_context: WorkerContext, _settings: object) -> Sequence[str]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxBackend(Generic[Settings]):
    """The description of a sandbox backend; ``make`` imports the heavy part late."""

    name: str
    """Unique across all kinds of backends, no key of the core; also the key of its settings in template.json."""
    summary: str
    """One line for ``olcore plugins``."""
    settings: type[Settings]
    """A msgspec struct with a default for every field."""
    make: Callable[[WorkerContext, Settings], SandboxPool]
    why_unusable: Callable[[Settings], str | None] = _usable
    """Why it cannot run on this machine, with the way out; ``None`` when it can. Cheap, and changes nothing."""
    clean: Callable[[WorkerContext, Settings], Sequence[str]] = _nothing_to_clean
    """Remove what a dead worker of that name left on the machine; one line for each thing removed. No worker of that name runs."""
