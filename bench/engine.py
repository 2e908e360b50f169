"""A Docker engine of a benchmark's own: everything of it is in one folder, and gone afterwards.

It makes no bridge and no firewall rules, so that the machine's network stays as it is; its containers have the network
``none`` or ``host``.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

START_S = 60.0


@contextmanager
def private_engine() -> Iterator[str]:
    """Start it, and yield its URL when it is ready."""
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        raise SystemExit(
            "an engine of the benchmark's own needs root and dockerd; apt-get install docker.io"
        )
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="ol-bench-dockerd-")))
        undo.callback(_unmount_below, folder)
        # Not by a name that a check for leftovers takes for the product's own.
        cgroup = f"bench-{folder.name}"
        undo.callback(_remove_cgroups, cgroup)
        ready = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        ready.bind(str(folder / "notify"))
        ready.settimeout(START_S)
        log = undo.enter_context((folder / "log").open("wb"))
        process = subprocess.Popen(
            [
                "dockerd",
                f"--data-root={folder}/data",
                f"--exec-root={folder}/exec",
                f"--host=unix://{folder}/docker.sock",
                f"--pidfile={folder}/pid",
                f"--cgroup-parent=/{cgroup}",
                "--bridge=none",
                "--iptables=false",
                "--ip-forward=false",
            ],
            stdout=log,
            stderr=log,
            env={**os.environ, "NOTIFY_SOCKET": f"{folder}/notify"},
            start_new_session=True,  # Ctrl-C is for the benchmark, which then removes its containers
        )
        undo.callback(_stop, process)
        try:
            while b"READY=1" not in ready.recv(4096):
                pass
        except TimeoutError:
            said = (folder / "log").read_text(errors="replace")[-2000:]
            raise SystemExit(f"dockerd is not ready after {START_S:.0f} s:\n{said}") from None
        yield f"unix://{folder}/docker.sock"


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(START_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _remove_cgroups(name: str) -> None:
    # One for each hierarchy of version 1, or the only one of version 2; the engine leaves them, empty.
    roots = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
    for root in roots:
        for folder, _, _ in os.walk(root / name, topdown=False):
            Path(folder).rmdir()


def _unmount_below(folder: Path) -> None:
    targets = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for target in sorted(targets, reverse=True):
        if Path(target).is_relative_to(folder):
            subprocess.run(["umount", "--lazy", target], check=True)
