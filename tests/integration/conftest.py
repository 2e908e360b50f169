"""Real workers with real plugins; after each test nothing of ours is left on the machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from olcore.testing.leaks import assert_no_leaks
from tests.integration.clusters import Cluster, free_ports


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """Look at processes, mounts, control groups, interfaces, rules and files before and after."""
    with assert_no_leaks(tmp_path):
        yield


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that has been made and not started, with sandbox ``sock`` and registry ``local``."""
    cluster = Cluster(tmp_path / "my-cluster", free_ports(3))
    cluster.olcore("new")
    cluster.olcore("setconf", '{"sandbox": "sock", "registry": "local"}')
    yield cluster
    cluster.olcore("kill")


@pytest.fixture
def running(cluster: Cluster) -> Cluster:
    """A cluster with one worker."""
    cluster.start()
    return cluster
