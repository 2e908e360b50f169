"""Starts a launcher and brings it to the point where its zygote can be forked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ol_sandbox_sock import launcher
from ol_sandbox_sock.links import Link
from ol_sandbox_sock.zygote import ZygoteLink
from olcore.errors import SandboxUnavailableError

if TYPE_CHECKING:
    import socket

    from ol_sandbox_sock.root import Step
    from olcore.interfaces import GuestInfo

_OURS = Path(__file__).parent.parent
_BOOT = "import sys; sys.path.append(sys.argv.pop(1)); from ol_sandbox_sock.launcher import main; main()"
_STOP_TIMEOUT_S = 10.0


class Launch:
    """One launcher with one root zygote.

    Args:
        steps: The root file system.
        executable: The Python inside.
        folder: An empty folder to build the root on; nothing is ever mounted there in the host's own mount namespace.
        log: File for what launcher and zygote print.
        uids: First host uid and how many; uid 0 inside is the first.
        network: Whether in an empty network namespace of its own, or in the host's.
    """

    def __init__(
        self,
        *,
        steps: list[Step],
        executable: str,
        folder: Path,
        log: Path,
        uids: tuple[int, int],
        network: bool,
    ) -> None:
        self._steps = steps
        self._executable = executable
        self._folder = folder
        self._log = log
        self._uids = uids
        self._network = network
        self._process: subprocess.Popen[bytes] | None = None
        self._zygote: ZygoteLink | None = None

    async def start(self) -> tuple[ZygoteLink, GuestInfo]:
        """Start it; call it on the main thread, whose end is what kills the launcher (prctl(2), PR_SET_PDEATHSIG).

        Raises:
            SandboxUnavailableError: It did not come up; says what its log says last.
        """
        with ExitStack() as undo:
            link, theirs = Link.pair()
            undo.callback(link.close)
            self._process = self._spawn(theirs)
            undo.callback(self._process.wait)
            undo.callback(self._process.kill)
            try:
                await self._hand_over(link)
                zygote = ZygoteLink(link)
                info = await zygote.ready()
            except (OSError, SandboxUnavailableError) as error:
                raise SandboxUnavailableError(
                    f"the zygote did not start: {self._last_words()}"
                ) from error
            undo.pop_all()
        self._zygote = zygote
        return zygote, info

    def _spawn(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        fd = theirs.fileno()
        command = [sys.executable, "-I", "-S", "-c", _BOOT, str(_OURS), str(fd), str(os.getpid())]
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[fd],
                # Out of the terminal's reach: ctrl-C is the worker's to handle.
                start_new_session=True,
                env={"PATH": os.defpath},
            )
        theirs.close()
        return process

    async def _hand_over(self, link: Link) -> None:
        order = {
            "steps": launcher.pack(self._steps),
            "folder": str(self._folder),
            "executable": self._executable,
            "network": self._network,
        }
        await link.send(order)
        packet, _ = await link.receive()
        if packet is None:
            raise SandboxUnavailableError("the launcher ended")
        base, size = self._uids
        for name in ("gid_map", "uid_map"):
            Path(f"/proc/{packet['map']}/{name}").write_text(f"0 {base} {size}")
        await link.send({"mapped": True})

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log.read_text(errors="replace").strip().splitlines()
            if lines:
                return lines[-1]
        return "no word from it"

    async def close(self) -> None:
        """End the zygote, everything below it and the launcher, and wait until all is gone; idempotent."""
        if self._zygote is not None:
            self._zygote.close()
            self._zygote = None
        process, self._process = self._process, None
        if process is None:
            return
        try:
            await asyncio.to_thread(process.wait, _STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)
