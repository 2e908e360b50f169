"""Control groups: the limits of a sandbox, its freezer, and the count of what ran out of memory.

One class, ``Cgroup``, with two writers, chosen by looking at what is mounted:

- ``cgroup_files.V2``, where the one hierarchy of cgroup v2 has the memory, cpu and pids controllers (Linux, cgroup-v2.rst);
- ``cgroup_files.V1``, where these are v1 hierarchies of their own, each with its own folder for each group (cgroup-v1/memory.rst,
  scheduler/sched-bwc.rst, cgroup-v1/pids.rst). Freezing and killing still need v2, which the kernel offers beside v1
  without controllers: v1's own freezer tells nobody when it is done and would have to be polled.

Entering a group through ``cgroup.procs`` waits for a grace period of the kernel's, 8 to 16 ms when the last such write
was a while ago. v1 has a way around it: a process that writes 0 to ``tasks``, through a descriptor that root opened,
moves itself in a tenth of a millisecond; ``entry_fds`` opens these. v2 has none, so its callers attach ahead of need.
(The mount option ``favordynmods`` makes all of these writes quick, and forks a little slower; it is the operator's.)

All blocking calls take well under a millisecond but those that say otherwise. They raise OSError.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ol_sandbox_sock import cgroup_files, linux
from olcore.errors import BackendUnusableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from olcore.interfaces import Limits, Usage

TOP = "olcore"
"""The folder, in each hierarchy, below which everything of ours stands."""
_LABEL = re.compile(r"[a-z0-9-]{1,100}")


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """The hierarchies that this machine has, and the writer that fits."""

    mounts: dict[str, Path]
    """Controller -> mount point."""
    unified: Path
    """Mount point of v2."""
    writer: cgroup_files.Writer

    @property
    def is_v2(self) -> bool:
        """Whether the limits are version 2's."""
        return self.writer.entry is None

    @property
    def tops(self) -> Sequence[Path]:
        """Our folder in each hierarchy, v2 last."""
        return [mount / TOP for mount in dict.fromkeys((*self.mounts.values(), self.unified))]

    def worker(self, label: str) -> WorkerCgroups:
        """Make the folders of one worker; *label* is unique on the machine, of ``[a-z0-9-]``."""
        if not _LABEL.fullmatch(label):
            raise ValueError(f"{label!r} is not a label")
        try:
            for top in self.tops:
                _make_folder(top / label)
            if self.is_v2:
                self._delegate(label)
        except OSError as error:
            with contextlib.suppress(OSError):  # the first failure says more
                clean(label, self)
            raise BackendUnusableError(
                f"control groups cannot be made: {error}",
                hint="run as root, outside of a container",
            ) from error
        return WorkerCgroups(self, label)

    def _delegate(self, label: str) -> None:
        """Let the groups of a worker have controllers.

        cgroup-v2.rst, "Top-down constraint": a group has a controller when its parent's ``cgroup.subtree_control``
        names it, so every folder from the root down must. "No internal process constraint": only the root may do so and
        hold processes too, which is why our folder stands below the root, as those of container engines do. What is
        added to the root's list stays: others may have come to use it, and an unused controller costs nothing.
        """
        for folder in (self.unified, self.unified / TOP, self.unified / TOP / label):
            file = folder / "cgroup.subtree_control"
            missing = set(cgroup_files.CONTROLLERS) - set(file.read_text().split())
            if missing:
                cgroup_files.write(file, " ".join(f"+{name}" for name in sorted(missing)))


def find(mounts: Path = Path("/proc/mounts")) -> Hierarchy:
    """Look for what this machine has.

    Raises:
        BackendUnusableError: It lacks something; says what.
    """
    v1, unified = cgroup_files.mounted(mounts.read_text())
    if unified is None:
        raise BackendUnusableError(
            "no cgroup v2 is mounted, which pausing needs even where limits are v1's",
            hint="mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified (after mkdir), or boot with cgroup v2",
        )
    if set(cgroup_files.CONTROLLERS) <= set((unified / "cgroup.controllers").read_text().split()):
        return Hierarchy(
            dict.fromkeys(cgroup_files.CONTROLLERS, unified), unified, cgroup_files.V2()
        )
    missing = [name for name in (*cgroup_files.CONTROLLERS, "cpuacct") if name not in v1]
    if missing:
        raise BackendUnusableError(
            f"the kernel has no cgroup controller {', '.join(missing)}, neither in v2 at {unified} nor in v1",
            hint="memory needs cgroup_enable=memory on the kernel command line of some distributions",
        )
    return Hierarchy(v1, unified, cgroup_files.V1())


def why_unusable() -> str | None:
    """Say why limits cannot be had here; changes nothing."""
    try:
        tops = find().tops
    except BackendUnusableError as error:
        return f"{error}; {error.hint}"
    for top in tops:
        if not os.access(top.parent, os.W_OK):
            return f"{top.parent} cannot be written; run as root, outside of a container"
    return None


def clean(label: str, hierarchy: Hierarchy | None = None, deadline_s: float = 10.0) -> list[str]:
    """Remove what a dead worker of that label left, killing what is inside; one line for each group removed."""
    try:
        hierarchy = hierarchy or find()
    except BackendUnusableError:
        return []
    tops = [top for top in hierarchy.tops if (top / label).is_dir()]
    names = sorted({path.name for top in tops for path in (top / label).iterdir() if path.is_dir()})
    for name in names:
        group = Cgroup(hierarchy, label, name)
        group.kill()
        group.remove_blocking(deadline_s)
    for top in tops:
        (top / label).rmdir()
    for top in hierarchy.tops:
        with contextlib.suppress(
            OSError
        ):  # other workers' groups are still in it, or it was never made
            top.rmdir()
    return [f"cgroup {TOP}/{label}/{name}" for name in names]


class WorkerCgroups:
    """The groups of one worker."""

    def __init__(self, hierarchy: Hierarchy, label: str) -> None:
        self.hierarchy = hierarchy
        self.label = label

    def make(self, id: str, limits: Limits) -> Cgroup:  # noqa: A002 -- as in SandboxSpec
        """Make a group with limits; on failure nothing of it is left. *id* is unique in the worker, safe in a path."""
        group = Cgroup(self.hierarchy, self.label, id)
        with contextlib.ExitStack() as undo:
            for path in group.paths:
                path.mkdir()
                undo.callback(path.rmdir)
            group.set_limits(limits)
            undo.pop_all()
        return group

    def close(self) -> None:
        """Remove every group, killing what is inside; idempotent. May block for as long as processes take to die."""
        clean(self.label, self.hierarchy)


class Cgroup:
    """One group: a folder in each hierarchy. It keeps no descriptor open."""

    __slots__ = ("_freezable", "_hierarchy", "_limits", "_paths", "_unified", "id", "paths")

    def __init__(self, hierarchy: Hierarchy, label: str, id: str) -> None:  # noqa: A002 -- as in SandboxSpec
        self.id = id
        below = f"{TOP}/{label}/{id}"
        self._hierarchy = hierarchy
        self._paths = {name: mount / below for name, mount in hierarchy.mounts.items()}
        self._unified = hierarchy.unified / below
        self.paths = tuple(dict.fromkeys((*self._paths.values(), self._unified)))
        self._limits: Limits | None = None
        self._freezable = hierarchy.is_v2

    def path(self, controller: str) -> Path:
        """Return the folder in the controller's hierarchy."""
        return self._paths[controller]

    def set_limits(self, limits: Limits) -> None:
        """Set or change the limits; memory below what is in use fails with EBUSY on v1, kills on v2."""
        if limits == self._limits:
            return
        for write in self._hierarchy.writer.limits(limits, self._limits):
            file = self._paths[write.controller] / write.file
            if not (write.is_optional and not file.exists()):
                cgroup_files.write(file, write.value)
        self._limits = limits

    @property
    def enters_by_attach(self) -> bool:
        """Whether ``attach`` is the only way in, because the version has no quick entry."""
        return self._hierarchy.writer.entry is None

    def entry_fds(self) -> list[int]:
        """Open what a process writes ``b"0"`` to, with one thread, to move itself in; the caller closes them.

        Empty on v2: call ``attach`` there.
        """
        entry = self._hierarchy.writer.entry
        if entry is None:
            return []
        with contextlib.ExitStack() as undo:
            fds = []
            for path in dict.fromkeys(self._paths.values()):
                fds.append(os.open(path / entry, os.O_WRONLY | os.O_CLOEXEC))
                undo.callback(os.close, fds[-1])
            undo.pop_all()
            return fds

    def attach(self, pid: int) -> None:
        """Move a process in from outside, into every hierarchy; may block for 16 ms."""
        for path in self.paths:
            cgroup_files.write(path / "cgroup.procs", str(pid))
        self._freezable = True

    def make_freezable(self) -> None:
        """On v1, take what is inside into v2 as well; may block for 16 ms. ``freeze`` does so when nobody did before."""
        # A process can fork between the listing and its own move; its child is then outside, and in the next listing.
        moved: set[int] = set()
        while pids := set(cgroup_files.pids(self._paths["pids"])) - moved:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    cgroup_files.write(self._unified / "cgroup.procs", str(pid))
            moved |= pids
        self._freezable = True

    async def freeze(self, deadline_s: float) -> None:
        """Stop every process where it stands; returns when none runs any more.

        Raises:
            TimeoutError: Some did not stop in time; all were thawed again.
        """
        if not self._freezable:
            await asyncio.to_thread(self.make_freezable)
        cgroup_files.write(self._unified / "cgroup.freeze", "1")
        events = os.open(self._unified / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        try:
            async with asyncio.timeout(deadline_s):
                await _until_frozen(events)
        except TimeoutError:
            self.thaw()
            raise TimeoutError(
                errno.ETIMEDOUT, f"not frozen in {deadline_s:g} s", str(self._unified)
            ) from None
        finally:
            os.close(events)

    def thaw(self) -> None:
        """Let every process run on."""
        cgroup_files.write(self._unified / "cgroup.freeze", "0")

    def kill(self) -> None:
        """Send SIGKILL to every process, frozen or not, children born meanwhile included; does not wait for their end."""
        with contextlib.suppress(FileNotFoundError):  # it is gone, or the kernel is older than 5.14
            cgroup_files.write(self._unified / "cgroup.kill", "1")
        # What is in v1 only, and everything on an older kernel. Without new processes one listing is complete.
        if (self._paths["pids"] / "pids.max").exists() and any(
            cgroup_files.pids(self._paths["pids"])
        ):
            cgroup_files.write(self._paths["pids"] / "pids.max", "0")
            for pidfd in self._pidfds():
                with contextlib.suppress(ProcessLookupError):
                    linux.pidfd_send_signal(pidfd, signal.SIGKILL)

    def oom_kills(self) -> int:
        """How many processes the kernel has killed because the group was out of memory."""
        return self._hierarchy.writer.oom_kills(self._paths)

    def usage(self) -> Usage:
        """What is used now; memory is without the file cache that would be dropped first."""
        return self._hierarchy.writer.usage(self._paths)

    async def remove(self, deadline_s: float = 10.0) -> None:
        """Remove the group when it is empty; idempotent.

        Raises:
            TimeoutError: A process is still inside at the deadline.
        """
        if not self._rmdir():
            await asyncio.to_thread(self.remove_blocking, deadline_s)

    def remove_blocking(self, deadline_s: float) -> None:
        """As ``remove``, for a thread."""
        end = time.monotonic() + deadline_s
        while not self._rmdir():
            # Neither version of rmdir waits, and v1 tells nobody when a group becomes empty: processes tell.
            for pidfd in self._pidfds():
                poller = select.poll()
                poller.register(pidfd, select.POLLIN)
                poller.poll(max(0.0, end - time.monotonic()) * 1000)
            if time.monotonic() > end:
                raise TimeoutError(
                    errno.ETIMEDOUT, f"not empty in {deadline_s:g} s", str(self.paths[0])
                )
            os.sched_yield()

    def _rmdir(self) -> bool:
        for path in self.paths:
            try:
                path.rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in {errno.EBUSY, errno.ENOTEMPTY}:
                    raise
                return False
        return True

    def _pidfds(self) -> Iterator[int]:
        """Yield a descriptor for each process inside, valid until the next one."""
        for path in self.paths:
            for pid in cgroup_files.pids(path):
                try:
                    pidfd = linux.pidfd_open(pid)
                except OSError as error:
                    # Gone. The kernel says EINVAL while a process's number outlives the process for a moment.
                    if error.errno not in {errno.ESRCH, errno.EINVAL}:
                        raise
                    continue
                try:
                    # The pid may have ended, and been given to a stranger, since it was listed.
                    if pid in cgroup_files.pids(path):
                        yield pidfd
                finally:
                    os.close(pidfd)


def _make_folder(path: Path) -> None:
    while True:
        # Another worker may end just now, and remove the folder that we both stand in.
        with contextlib.suppress(FileNotFoundError):
            path.parent.mkdir(exist_ok=True)
            path.mkdir(exist_ok=True)
            return


async def _until_frozen(events: int) -> None:
    # cgroup-v2.rst: a change of cgroup.events wakes who polls it for POLLPRI. Event loops watch for readability only, and
    # the file is always readable; an epoll of its own turns the one into the other.
    loop = asyncio.get_running_loop()
    with select.epoll(1) as changed:
        changed.register(events, select.EPOLLPRI)
        while b"frozen 1" not in os.pread(events, 256, 0):
            woken = asyncio.Event()
            loop.add_reader(changed.fileno(), woken.set)
            try:
                await woken.wait()
            finally:
                loop.remove_reader(changed.fileno())
