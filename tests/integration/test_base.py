"""Sandboxes over a root file system of their own: olcore new --base, then requests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ol_sandbox_docker.image import pack_host
from tests.integration.clusters import Cluster, free_ports

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

LOOK = (
    "import os, sys\n"
    "def handler(event):\n"
    "    return {'marked': os.path.exists('/usr/marker'), 'man': os.path.exists('/usr/share/man'),\n"
    "            'python': sys.version.split()[0]}\n"
)


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with this machine's Python and what it needs, and a mark to know it by."""
    folder = tmp_path_factory.mktemp("rootfs")
    tar = folder / "packed.tar"
    pack_host(os.open(tar, os.O_WRONLY | os.O_CREAT))
    root = folder / "root"
    root.mkdir()
    subprocess.run(["tar", "-C", root, "-xf", tar], check=True)
    tar.unlink()
    (root / "usr" / "marker").write_text("")
    return root


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that is not made yet."""
    cluster = Cluster(tmp_path / "my-cluster", free_ports(1))
    yield cluster
    cluster.olcore("kill")


def _seen(cluster: Cluster) -> dict[str, object]:
    cluster.olcore("setconf", '{"sandbox": "sock", "registry": "local"}')
    cluster.add("look", LOOK)
    cluster.start()
    answer = cluster.call("look", None)
    assert answer.status == 200, answer.body
    seen: dict[str, object] = answer.json
    return seen


def test_a_folder_becomes_the_root_of_handlers(cluster: Cluster, rootfs: Path) -> None:
    said = cluster.olcore("new", "--base", str(rootfs)).stdout
    seen = _seen(cluster)
    assert (seen["marked"], seen["man"]) == (True, False)
    assert f"with Python {seen['python']} at /usr/local/bin/python3" in said


def test_a_compressed_archive_does_too(cluster: Cluster, rootfs: Path, tmp_path: Path) -> None:
    tar = tmp_path / "rootfs.tar.gz"
    subprocess.run(["tar", "-C", rootfs, "-czf", tar, "."], check=True)
    cluster.olcore("new", "--base", str(tar))
    assert _seen(cluster)["marked"] is True


def test_a_python_without_ctypes_is_refused_by_name(
    cluster: Cluster, rootfs: Path, tmp_path: Path
) -> None:
    lacking = tmp_path / "lacking"
    subprocess.run(["cp", "-a", rootfs, lacking], check=True)
    for file in lacking.rglob("_ctypes*.so"):
        file.unlink()
    done = cluster.olcore("new", "--base", str(lacking), check=False)
    assert (done.returncode, cluster.root.exists()) == (1, False)
    assert "cannot import ctypes (" in done.stderr
    cluster.olcore("new")
