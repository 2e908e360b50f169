"""A Docker engine of the tests' own: started by hand, with everything of it in one folder, and gone afterwards."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ol_sandbox_docker.engine import Engine
from ol_sandbox_docker.settings import DockerSettings

IMAGE = "olcore-test"
START_S = 60.0


@dataclass
class PrivateEngine:
    """An engine that listens on a socket in its own folder."""

    folder: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def settings(self) -> DockerSettings:
        return DockerSettings(base_url=f"unix://{self.folder}/docker.sock", image=IMAGE)

    @property
    def cgroup(self) -> str:
        """What its containers are in; not by a name that the leak check takes for the product's own."""
        return f"test-{self.folder.name}"

    def start(self) -> None:
        """Start it, and return when it says that it is ready."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.settimeout(START_S)
            path = self.folder / "notify"
            path.unlink(missing_ok=True)
            notified.bind(str(path))
            with (self.folder / "log").open("ab") as log:
                self.process = subprocess.Popen(
                    [
                        "dockerd",
                        f"--data-root={self.folder}/data",
                        f"--exec-root={self.folder}/exec",
                        f"--host=unix://{self.folder}/docker.sock",
                        f"--pidfile={self.folder}/pid",
                        f"--cgroup-parent=/{self.cgroup}",
                        "--bridge=none",
                    ],
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "NOTIFY_SOCKET": str(path)},
                )
            while b"READY=1" not in notified.recv(4096):
                pass

    def stop(self) -> None:
        """Stop it as an operator does; its containers die with it."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(START_S)

    def kill(self) -> None:
        """Kill it as a crash does; its containers live on until it is started again."""
        assert self.process is not None
        containerd = self.folder / "exec/containerd/containerd.pid"
        pidfd = os.pidfd_open(int(containerd.read_text()))
        self.process.kill()
        self.process.wait(START_S)
        # Its containerd dies with it, a moment later, and stays a zombie until process 1 collects it; a new engine would
        # take that for alive.
        with selectors.DefaultSelector() as ended:
            ended.register(pidfd, selectors.EVENT_READ)
            assert ended.select(START_S)
        os.close(pidfd)
        containerd.unlink()


@pytest.fixture(scope="session")
def rootfs(request: pytest.FixtureRequest) -> Path:
    """A Debian with Python as a tar archive, made once for each checkout."""
    tar = Path(request.config.cache.mkdir("ol-docker")) / "rootfs.tar"
    if not tar.exists():
        _skip_without("debootstrap")
        with tempfile.TemporaryDirectory(prefix="ol-rootfs-") as folder:
            root = f"{folder}/root"
            subprocess.run(
                ["debootstrap", "--variant=minbase", "--include=python3", "stable", root],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            partial = tar.with_suffix(".partial")
            subprocess.run(["tar", "--numeric-owner", "-C", root, "-cf", partial, "."], check=True)
            partial.replace(tar)
    return tar


@pytest.fixture(scope="session")
def engine(rootfs: Path) -> Iterator[PrivateEngine]:
    """The engine, with an image imported; the machine's firewall is put back afterwards."""
    if os.geteuid() != 0:
        _skip("a private dockerd needs root")
    _skip_without("dockerd", "iptables-save")
    with ExitStack() as undo:
        undo.enter_context(_firewall_kept())
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="ol-dockerd-")))
        undo.callback(_unmount_below, folder)
        private = PrivateEngine(folder)
        undo.callback(_remove_cgroups, private.cgroup)
        undo.callback(_end_all_of, folder)
        undo.callback(lambda: private.process and private.process.poll() is None and private.stop())
        private.start()
        with rootfs.open("rb") as tar:
            client = Engine(private.settings.base_url, START_S)
            client.import_image(iter(lambda: tar.read(1 << 20), b""), IMAGE)
            client.close()
        yield private


@pytest.fixture
def settings(engine: PrivateEngine) -> DockerSettings:
    """Settings that lead to the private engine."""
    return engine.settings


@contextmanager
def _firewall_kept() -> Iterator[None]:
    """Put the rules and forwarding back: an engine changes both, and leaves them when it stops."""
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    before = forwarding.read_text()
    rules = subprocess.run(["iptables-save"], check=True, capture_output=True).stdout
    yield
    for table in ("filter", "nat"):
        if f"*{table}".encode() not in rules:
            chains = ("INPUT", "FORWARD", "OUTPUT") if table == "filter" else ()
            for chain in chains:
                subprocess.run(["iptables", "-w", "-P", chain, "ACCEPT"], check=True)
            subprocess.run(["iptables", "-w", "-t", table, "-F"], check=True)
            subprocess.run(["iptables", "-w", "-t", table, "-X"], check=True)
    subprocess.run(["iptables-restore", "-w"], check=True, input=rules)
    forwarding.write_text(before)


def _end_all_of(folder: Path) -> None:
    """After a test that failed half way, shims may be left; the folder on their command line is the engine's alone."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            if str(folder).encode() in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)


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


def _skip_without(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            _skip(f"no program {program!r}: apt install docker.io debootstrap")


def _skip(reason: str) -> None:
    # CI installs what is needed, so that nothing is skipped there unseen.
    if os.environ.get("OLCORE_REQUIRE_KERNEL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
