"""Runs uv: resolves requirements to pins and installs one pin into a folder.

uv gets every choice on its command line and runs in an empty folder, so that no project file near the worker changes
what it does. It inherits the environment: credentials and proxies are the operator's to set there.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import uv

from olcore.errors import PackagesError
from olcore.handlers.packages import unprivileged

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from olcore.handlers.packages.options import PackageOptions
    from olcore.interfaces import GuestInfo


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """One resolved package."""

    name: str
    version: str
    hashes: tuple[str, ...] = ()
    """Of every file of that version, ``sha256:...``."""

    def __str__(self) -> str:
        """Write it as a requirement without hashes."""
        return f"{self.name}=={self.version}"


# The newest first, as uv knows them; a wheel for an older glibc runs on a newer one.
_GLIBC = tuple((2, minor) for minor in (40, 39, 38, 37, 36, 35, 34, 33, 32, 31, 28, 17))


def platform_of(guest: GuestInfo) -> str | None:
    """Name the guest's platform for uv; ``None`` when it is one that uv has no name for, and the host's own will do.

    Raises:
        PackagesError: No wheel can be chosen for such a guest.
    """
    if guest.machine not in ("x86_64", "aarch64"):
        if guest.machine == os.uname().machine:
            return None
        raise PackagesError(
            f"packages cannot be chosen for a guest on {guest.machine!r} by a worker on {os.uname().machine!r}"
        )
    libc, _, version = guest.libc.partition(" ")
    if libc != "glibc":
        return f"{guest.machine}-unknown-linux-musl"
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    for known in _GLIBC:
        if numbers >= known:
            return f"{guest.machine}-manylinux_{known[0]}_{known[1]}"
    raise PackagesError(
        f"the guest's {guest.libc} is older than any wheel asks for",
        hint="use a base with glibc 2.17 or newer",
    )


class Uv:
    """The uv program with an operator's settings, for one kind of guest.

    Args:
        options: Where packages come from.
        guest: What wheels must fit.
    """

    def __init__(self, options: PackageOptions, guest: GuestInfo) -> None:
        if guest.implementation != sys.implementation.name:
            raise PackagesError(
                f"packages cannot be chosen for {guest.implementation!r} by a worker on {sys.implementation.name!r}"
            )
        self._options = options
        version = re.match(r"\d+\.\d+(\.\d+)?", guest.python)
        if version is None:
            raise PackagesError(f"the guest's Python version {guest.python!r} is not a version")
        platform = platform_of(guest)
        self._target = [
            *("--python", sys.executable, "--no-python-downloads"),
            *("--python-version", version.group()),
            *(("--python-platform", platform) if platform else ()),
            *("--no-progress", "--color", "never"),
            *(("--default-index", options.index) if options.index else ()),
            *(part for index in options.extra_indexes for part in ("--index", index)),
            *(("--offline",) if options.offline else ()),
        ]

    async def resolve(self, requirements: Sequence[str]) -> list[Pin]:
        """Choose a version of every package that *requirements* need, directly or not.

        Raises:
            PackagesError: There is no such choice, or no way to find out; holds uv's reason.
        """
        run = _Run(
            what=f"cannot resolve {', '.join(requirements)}",
            lines=tuple(requirements),
            command=("pip", "compile", "-", "--no-header", "--no-annotate", "--generate-hashes"),
        )
        return parse_pins(await self._wheels_first(run, None))

    async def install(self, pin: Pin, folder: Path) -> None:
        """Install the files of *pin* alone into *folder*.

        Raises:
            PackagesError: It has no wheel for this guest, or it cannot be fetched; holds uv's reason.
        """
        run = _Run(
            what=f"cannot install {pin}",
            lines=(" ".join([str(pin), *(f"--hash={one}" for one in pin.hashes)]),),
            command=(
                *("pip", "install", "--no-deps", "-r", "-"),
                *(("--require-hashes",) if pin.hashes else ()),
            ),
        )
        await self._wheels_first(run, folder)

    async def _wheels_first(self, run: _Run, folder: Path | None) -> str:
        try:
            return await self._run_for_wheels(run, folder)
        except PackagesError:
            if not self._options.allow_source_builds:
                raise
            await asyncio.to_thread(shutil.rmtree, folder or "", ignore_errors=True)
        return await self._run_with_builds(run, folder)

    async def _run_for_wheels(self, run: _Run, folder: Path | None) -> str:
        links = self._options.find_links
        with tempfile.TemporaryDirectory(prefix="olcore-uv-") as empty:
            command = [
                *(uv.find_uv_bin(), *run.command, *self._target, "--only-binary", ":all:"),
                *(("--find-links", links) if links else ()),
                *(("--target", str(folder)) if folder else ()),
            ]
            return await self._run(run, command, Path(empty), self._options.environment)

    async def _run_with_builds(self, run: _Run, folder: Path | None) -> str:
        why_not = unprivileged.why_not()
        if os.geteuid() != 0:
            why_not = "only a worker that is root can become somebody else to build from source"
        if why_not:
            raise PackagesError(f"{run.what}: {why_not}")
        links = self._options.find_links
        is_folder = bool(links) and "://" not in links
        with tempfile.TemporaryDirectory(prefix="olcore-uv-", ignore_cleanup_errors=True) as name:
            work = Path(name)
            environment = {**self._options.build_environment, **unprivileged.make_work(work)}
            shown = str(work / unprivileged.LINKS) if is_folder else links
            command = [
                *(uv.find_uv_bin(), *run.command, *self._target),
                *(("--find-links", shown) if links else ()),
                *(("--target", str(work / "out" / "it")) if folder else ()),
            ]
            wrapped = unprivileged.command(work, links if is_folder else "", command)
            out = await self._run(run, wrapped, work, environment)
            if folder is not None:
                await asyncio.to_thread(unprivileged.copy_result, work / "out" / "it", folder)
            return out

    async def _run(
        self, run: _Run, command: Sequence[str], cwd: Path, environment: Mapping[str, str] | None
    ) -> str:
        timeout_s = self._options.timeout_s
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=cwd,
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # A group of its own, so that a build's children go with it, and ctrl-C is the worker's to handle.
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(timeout_s):
                out, err = await process.communicate("\n".join(run.lines).encode())
        except TimeoutError as error:
            raise PackagesError(
                f"{run.what}: uv did not end within {timeout_s:g} s",
                hint="raise package_timeout_s, or look whether the package index answers",
            ) from error
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if process.returncode:
            raise _failure(run.what, err.decode(errors="replace"))
        return out.decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One thing to have done by uv."""

    what: str
    """The beginning of its error."""
    lines: tuple[str, ...]
    """What it reads."""
    command: tuple[str, ...]


def parse_pins(lock: str) -> list[Pin]:
    """Read what ``uv pip compile`` wrote.

    Raises:
        PackagesError: A package is not from an index (a dependency by URL).
    """
    pins = []
    for line in re.sub(r"\\\n", " ", lock).splitlines():
        words = line.split()
        if not words or words[0].startswith(("#", "-")):
            continue
        name, equal, version = words[0].partition("==")
        if not equal or "@" in words:
            raise PackagesError(f"the dependency {line.strip()!r} does not come from an index")
        hashes = tuple(word.removeprefix("--hash=") for word in words[1:] if "--hash=" in word)
        pins.append(Pin(name=name, version=version, hashes=hashes))
    return pins


def _failure(what: str, said: str) -> PackagesError:
    # A URL's password is never uv's to show nor ours to pass on to whoever called the handler.
    said = re.sub(r"://[^/@\s]+@", "://***@", said).strip()
    reason, _, hint = said.partition("\nhint:")
    reason = re.sub(r"\n\s*cause:\s*", ": ", reason)
    reason = re.sub(r"(?m)^\s*(error:|cause:|[\u00d7\u2500-\u25ff]+)\s*", "", reason)
    short = " ".join(reason.split()).rstrip(".")
    return PackagesError(
        f"{what}: {short or 'uv failed without a word'}",
        hint=" ".join(hint.split()) or None,
        details={"uv": said[-8192:]},
    )
