"""Runs uv: resolves requirements to pins and installs one pin into a folder.

uv gets every choice on its command line and runs in an empty folder, so that no project file near the worker changes
what it does. It inherits the environment: credentials and proxies are the operator's to set there.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import uv

from olcore.errors import PackagesError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

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
            *(() if options.allow_source_builds else ("--only-binary", ":all:")),
            *(("--default-index", options.index) if options.index else ()),
            *(part for index in options.extra_indexes for part in ("--index", index)),
            *(("--find-links", options.find_links) if options.find_links else ()),
            *(("--offline",) if options.offline else ()),
        ]

    async def resolve(self, requirements: Sequence[str]) -> list[Pin]:
        """Choose a version of every package that *requirements* need, directly or not.

        Raises:
            PackagesError: There is no such choice, or no way to find out; holds uv's reason.
        """
        out = await self._run(
            f"cannot resolve {', '.join(requirements)}",
            requirements,
            *("pip", "compile", "-", "--no-header", "--no-annotate", "--generate-hashes"),
        )
        return parse_pins(out)

    async def install(self, pin: Pin, folder: Path) -> None:
        """Install the files of *pin* alone into *folder*.

        Raises:
            PackagesError: It has no wheel for this guest, or it cannot be fetched; holds uv's reason.
        """
        line = " ".join([str(pin), *(f"--hash={one}" for one in pin.hashes)])
        await self._run(
            f"cannot install {pin}",
            [line],
            *("pip", "install", "--target", str(folder), "--no-deps", "-r", "-"),
            *(("--require-hashes",) if pin.hashes else ()),
        )

    async def _run(self, what: str, lines: Sequence[str], *command: str) -> str:
        options = self._options
        with tempfile.TemporaryDirectory(prefix="olcore-uv-") as empty:
            process = await asyncio.create_subprocess_exec(
                *(uv.find_uv_bin(), *command, *self._target),
                cwd=empty,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                # A group of its own, so that a build's children go with it, and ctrl-C is the worker's to handle.
                start_new_session=True,
            )
            try:
                async with asyncio.timeout(options.timeout_s):
                    out, err = await process.communicate("\n".join(lines).encode())
            except TimeoutError as error:
                raise PackagesError(
                    f"{what}: uv did not end within {options.timeout_s:g} s",
                    hint="raise package_timeout_s, or look whether the package index answers",
                ) from error
            finally:
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    await process.wait()
        if process.returncode:
            raise _failure(what, err.decode(errors="replace"))
        return out.decode()


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
    reason = re.sub(r"(?m)^\s*(error:|cause:|[\u00d7\u2500-\u25ff]+)\s*", "", reason)
    short = " ".join(reason.split()).rstrip(".")
    return PackagesError(
        f"{what}: {short or 'uv failed without a word'}",
        hint=" ".join(hint.split()) or None,
        details={"uv": said[-8192:]},
    )
