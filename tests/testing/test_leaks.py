"""The leak check sees what it is there for."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from olcore.testing import leaks


def test_nothing_is_no_leak(tmp_path: Path) -> None:
    with leaks.assert_no_leaks(tmp_path):
        subprocess.run(["true"], check=True)


def test_a_child_that_lives_on_is_named() -> None:
    before = leaks.snapshot()
    with subprocess.Popen(["sleep", "600"]) as child:
        left = leaks.difference(before, leaks.snapshot())
        child.kill()
    assert [line for line in left if line.endswith("sleep 600 ")] == left != []


def test_an_orphan_with_the_folder_on_its_command_line_is_named(tmp_path: Path) -> None:
    before = leaks.snapshot([tmp_path])
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'input()', sys.argv[1]],\n"
        "                         stdin=0, stdout=subprocess.DEVNULL)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, start_new_session=True
    )
    assert parent.wait(20) == 0
    left = leaks.difference(before, leaks.snapshot([tmp_path]))
    assert parent.stdin is not None
    with leaks.assert_no_leaks(tmp_path):
        parent.stdin.close()  # the orphan reads the end of its input
    assert any(str(tmp_path) in line for line in left)


def test_a_file_with_our_prefix_is_named() -> None:
    before = leaks.snapshot()
    with tempfile.NamedTemporaryFile(prefix="ol-leak-") as file:
        assert f"files: {file.name}" in leaks.difference(before, leaks.snapshot())


def test_what_is_not_gone_in_time_fails_by_name() -> None:
    with pytest.raises(AssertionError, match="sleep 600"), leaks.assert_no_leaks(deadline_s=0):
        child = subprocess.Popen(["sleep", "600"])
    child.kill()
    child.wait()


@pytest.mark.kernel
def test_mounts_cgroups_interfaces_and_tables_are_named(tmp_path: Path) -> None:
    from contextlib import ExitStack

    before = leaks.snapshot([tmp_path])
    with ExitStack() as undo:
        subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path)], check=True)
        undo.callback(subprocess.run, ["umount", str(tmp_path)], check=True)
        link = ["ip", "link"]
        subprocess.run([*link, "add", "olleak0", "type", "veth", "peer", "olleak1"], check=True)
        undo.callback(subprocess.run, [*link, "del", "olleak0"], check=True)
        cgroup = next(Path("/sys/fs/cgroup").glob("**/cgroup.procs")).parent / "olleak"
        cgroup.mkdir()
        undo.callback(cgroup.rmdir)
        left = leaks.difference(before, leaks.snapshot([tmp_path]))
    names = {name for _, name in socket.if_nameindex()}
    assert "olleak0" not in names
    assert {f"mounts: {tmp_path}", "interfaces: olleak0", f"cgroups: {cgroup}"} <= set(left)
