"""What a container is made of, and what the engine's answers mean; without an engine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ol_sandbox_docker.containers import Folders, config, network_name, tmpfs_options
from ol_sandbox_docker.engine import split
from ol_sandbox_docker.network import rules
from ol_sandbox_docker.plugin import ol_sandbox_backends
from ol_sandbox_docker.sandbox import death_of, usage_of
from ol_sandbox_docker.settings import DockerSettings
from ol_sandbox_docker.usable import why_runtime_unusable
from olcore.interfaces import DeathCause, Limits, Network, Usage, WorkerContext


@pytest.fixture
def context(tmp_path: Path) -> WorkerContext:
    return WorkerContext(
        cluster_name="/clusters/one",
        worker_name="worker-3",
        worker_dir=tmp_path,
        base_dir=tmp_path,
        packages_dir=tmp_path,
        limits=Limits(),
        network=Network.NAT,
    )


def test_a_container_has_no_rights_and_sees_four_folders(context: WorkerContext) -> None:
    folders = Folders(code=Path("/code"), scratch=Path("/scratch"), packages=Path("/wheels"))
    described = config(context, DockerSettings(), folders, Limits(), Network.NONE)
    host = described["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["ReadonlyRootfs"] is True
    assert {mount["Target"]: mount["ReadOnly"] for mount in host["Mounts"]} == {
        "/opt/olcore/olguest": True,
        "/handler": True,
        "/host": False,
        "/packages": True,
    }


def test_limits_become_the_engine_s(context: WorkerContext) -> None:
    folders = Folders(code=Path("/code"), scratch=Path("/scratch"), packages=None)
    limits = Limits(memory_mb=64, cpu_percent=150, max_processes=9, tmp_mb=5)
    host = config(context, DockerSettings(), folders, limits, Network.NONE)["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 64 << 20
    assert host["NanoCpus"] == 1_500_000_000
    assert host["PidsLimit"] == 9
    assert "size=5m" in host["Tmpfs"]["/tmp"]
    assert host["ShmSize"] == 5 << 20


@pytest.mark.parametrize("kind", list(Network))
def test_the_kind_of_network_becomes_a_mode(kind: Network, context: WorkerContext) -> None:
    folders = Folders(code=Path("/code"), scratch=Path("/scratch"), packages=None)
    host = config(context, DockerSettings(), folders, Limits(), kind)["HostConfig"]
    expected = network_name(context) if kind is Network.NAT else kind.value
    assert host["NetworkMode"] == expected


def test_the_name_of_a_bridge_fits_an_interface(context: WorkerContext) -> None:
    assert len(network_name(context)) <= 15


def test_dns_is_let_through_before_all_else_is_dropped() -> None:
    targets = [rule[-1] for rule in rules("ol0")]
    assert targets == ["ACCEPT", "ACCEPT", "DROP"]
    assert all("53" in rule for rule in rules("ol0")[:2])


def test_the_number_of_files_is_bounded_too() -> None:
    assert tmpfs_options(64) == "size=64m,nr_inodes=4096,mode=1777"
    assert "nr_inodes=1024" in tmpfs_options(1)


def test_a_status_is_an_exit_code_a_signal_or_no_memory() -> None:
    limits = Limits(memory_mb=64)
    assert death_of(3, out_of_memory=False, limits=limits).exit_code == 3
    assert death_of(139, out_of_memory=False, limits=limits).signal == "SIGSEGV"
    assert death_of(255, out_of_memory=False, limits=limits).exit_code == 255
    starved = death_of(137, out_of_memory=True, limits=limits)
    assert starved.cause is DeathCause.OUT_OF_MEMORY
    assert str(starved) == "out of memory: over its limit of 64 MiB"


def test_an_own_exit_after_a_starved_child_is_an_exit() -> None:
    assert death_of(1, out_of_memory=True, limits=Limits()).cause is DeathCause.EXITED


def test_usage_of_a_container_that_has_just_ended_is_nothing() -> None:
    stats = {"memory_stats": {}, "cpu_stats": {"cpu_usage": {"total_usage": 0}}, "pids_stats": {}}
    assert usage_of(stats) == Usage(memory_bytes=0, cpu_s=0, processes=0)


def test_a_virtual_machine_shares_no_socket() -> None:
    info = {"Runtimes": {"kata": {"path": "/usr/bin/kata-runtime"}}}
    assert "shares no Unix socket" in str(why_runtime_unusable("kata", info))


def test_runsc_must_open_host_sockets() -> None:
    closed = {"Runtimes": {"runsc": {"path": "/usr/bin/runsc"}}}
    opened = {"Runtimes": {"runsc": {"path": "/x/runsc", "runtimeArgs": ["--host-uds=open"]}}}
    assert '"--host-uds=open"' in str(why_runtime_unusable("runsc", closed))
    assert why_runtime_unusable("runsc", opened) is None


def test_runsc_as_the_default_is_checked_too() -> None:
    info = {"DefaultRuntime": "runsc", "Runtimes": {"runsc": {"path": "/usr/bin/runsc"}}}
    assert "keeps sandboxes from" in str(why_runtime_unusable("", info))


def test_runsc_sees_no_folder_that_is_mounted_later() -> None:
    info = {"Runtimes": {"runsc": {"path": "/x/runsc", "runtimeArgs": ["--host-uds=open"]}}}
    assert "docker.warm_pool" in str(why_runtime_unusable("runsc", info, warm_pool=1))


def test_only_what_waits_ahead_sees_later_mounts(context: WorkerContext) -> None:
    folders = Folders(code=Path("/c"), scratch=Path("/s"), packages=None, go=Path("/go"))
    host = config(context, DockerSettings(), folders, Limits(), Network.NONE)["HostConfig"]
    later = {m["Target"] for m in host["Mounts"] if m["BindOptions"]["Propagation"] == "rslave"}
    assert later == {"/handler", "/host"}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("olcore", ("olcore", "latest")),
        ("python:3.12-slim", ("python", "3.12-slim")),
        ("localhost:5000/python", ("localhost:5000/python", "latest")),
        ("localhost:5000/python:3", ("localhost:5000/python", "3")),
        ("python@sha256:00ff", ("python", "sha256:00ff")),
    ],
)
def test_the_port_of_a_registry_is_no_tag(name: str, parts: tuple[str, str]) -> None:
    assert split(name) == parts


def test_a_client_that_is_not_whole_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    for name in ("usable", "engine"):
        monkeypatch.delitem(sys.modules, f"ol_sandbox_docker.{name}", raising=False)
    (backend,) = ol_sandbox_backends()
    said = str(backend.why_unusable(DockerSettings()))
    assert "docker" in said
    assert "pip install" in said
