"""What is written to control groups, on plain folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from ol_sandbox_sock import cgroup_files, cgroups
from ol_sandbox_sock.cgroups import Cgroup, Hierarchy
from olcore.errors import BackendUnusableError
from olcore.interfaces import Limits

LIMITS = Limits(memory_mb=64, cpu_percent=50, max_processes=20)
HYBRID = """\
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup /sys/fs/cgroup/pids cgroup rw,relatime,pids 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,name=systemd 0 0
cgroup2 {unified} cgroup2 rw,relatime 0 0
"""


def test_limits_of_v1_set_memory_before_memory_and_swap() -> None:
    assert [write.describe() for write in cgroup_files.V1().limits(LIMITS, None)] == [
        "memory: memory.limit_in_bytes = 67108864",
        "memory: memory.memsw.limit_in_bytes = 67108864",
        "memory: memory.kmem.tcp.limit_in_bytes = 67108864",
        "cpu: cpu.cfs_period_us = 100000",
        "cpu: cpu.cfs_quota_us = 50000",
        "pids: pids.max = 20",
    ]


def test_limits_of_v1_that_grow_set_memory_and_swap_first() -> None:
    files = [write.file for write in cgroup_files.V1().limits(LIMITS, Limits(memory_mb=32))]
    assert files[:2] == ["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"]


def test_limits_of_v2_leave_no_swap() -> None:
    assert [write.describe() for write in cgroup_files.V2().limits(LIMITS, None)] == [
        "memory: memory.max = 67108864",
        "memory: memory.swap.max = 0",
        "cpu: cpu.max = 50000 100000",
        "pids: pids.max = 20",
    ]


def test_hybrid_is_found_by_its_mounts(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("hugetlb\n")
    (tmp_path / "mounts").write_text(HYBRID.format(unified=tmp_path))
    found = cgroups.find(tmp_path / "mounts")
    assert not found.is_v2
    # cpu and cpuacct share one hierarchy here: one folder, not two.
    assert [str(top) for top in found.tops] == [
        "/sys/fs/cgroup/cpu,cpuacct/olcore",
        "/sys/fs/cgroup/memory/olcore",
        "/sys/fs/cgroup/pids/olcore",
        f"{tmp_path}/olcore",
    ]


def test_v2_with_controllers_is_preferred(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "mounts").write_text(f"cgroup2 {tmp_path} cgroup2 rw,nsdelegate 0 0\n")
    found = cgroups.find(tmp_path / "mounts")
    assert found.is_v2
    assert found.tops == [tmp_path / "olcore"]


def test_a_missing_controller_is_named(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu pids\n")
    (tmp_path / "mounts").write_text(f"cgroup2 {tmp_path} cgroup2 rw 0 0\n")
    with pytest.raises(BackendUnusableError, match="no cgroup controller memory"):
        cgroups.find(tmp_path / "mounts")


def test_a_machine_without_v2_is_unusable(tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text("cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n")
    with pytest.raises(BackendUnusableError, match="no cgroup v2"):
        cgroups.find(tmp_path / "mounts")


def _v2_tree(root: Path, files: dict[str, str]) -> Hierarchy:
    folder = root / "olcore" / "ol-test" / "one"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return Hierarchy(dict.fromkeys(cgroup_files.CONTROLLERS, root), root, cgroup_files.V2())


def test_v2_writes_limits_and_skips_swap_where_there_is_none(tmp_path: Path) -> None:
    tree = _v2_tree(tmp_path, {"memory.max": "", "cpu.max": "", "pids.max": ""})
    group = Cgroup(tree, "ol-test", "one")
    group.set_limits(LIMITS)
    folder = group.path("memory")
    assert (folder / "memory.max").read_text() == "67108864"
    assert (folder / "cpu.max").read_text() == "50000 100000"
    assert (folder / "pids.max").read_text() == "20"
    assert not (folder / "memory.swap.max").exists()


def test_v2_reads_usage_and_kills(tmp_path: Path) -> None:
    tree = _v2_tree(
        tmp_path,
        {
            "memory.current": "5000\n",
            "memory.stat": "anon 3000\ninactive_file 1000\n",
            "memory.events": "low 0\noom 2\noom_kill 1\n",
            "cpu.stat": "usage_usec 1500000\nuser_usec 1\n",
            "pids.current": "3\n",
        },
    )
    group = Cgroup(tree, "ol-test", "one")
    usage = group.usage()
    assert (usage.memory_bytes, usage.cpu_s, usage.processes) == (4000, 1.5, 3)
    assert group.oom_kills() == 1
    assert group.entry_fds() == []


def test_v2_enables_controllers_from_the_root_down(tmp_path: Path) -> None:
    tree = _v2_tree(tmp_path, {})
    (tmp_path / "cgroup.subtree_control").write_text("cpuset memory")
    (tmp_path / "olcore" / "cgroup.subtree_control").write_text("")
    (tmp_path / "olcore" / "ol-test" / "cgroup.subtree_control").write_text("cpu memory pids")
    tree.worker("ol-test")
    # A plain file is overwritten at its start, where the kernel would add.
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +pidsory"
    assert (tmp_path / "olcore" / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert (
        tmp_path / "olcore" / "ol-test" / "cgroup.subtree_control"
    ).read_text() == "cpu memory pids"


@pytest.mark.parametrize("label", ["", "../x", "A", "a/b"])
def test_a_label_that_is_no_folder_name_is_refused(tmp_path: Path, label: str) -> None:
    with pytest.raises(ValueError, match="not a label"):
        _v2_tree(tmp_path, {}).worker(label)
