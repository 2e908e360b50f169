"""Tests of the host uids: no two owners of one, and none lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ol_sandbox_sock import uids
from ol_sandbox_sock.uids import SIZE, UidRange
from olcore.errors import BackendUnusableError, SandboxUnavailableError

BASE = 0x7000_0000


def test_the_default_base_is_above_what_is_given_out(tmp_path: Path) -> None:
    file = tmp_path / "subuid"
    assert uids.default_base((file,)) == BASE
    file.write_text("alice:100000:65536\n# a comment\nbob:not:numbers\n")
    assert uids.default_base((file,)) == BASE
    file.write_text(f"alice:{BASE}:100\n")
    assert uids.default_base((file,)) == BASE + SIZE


def test_two_workers_get_ranges_that_do_not_meet(tmp_path: Path) -> None:
    first, second = UidRange(BASE, tmp_path / "uids"), UidRange(BASE + 5, tmp_path / "uids")
    third = UidRange(BASE, tmp_path / "uids")
    assert {first.base, second.base, third.base} == {BASE, BASE + SIZE, BASE + 2 * SIZE}
    for one in (first, second, third):
        one.close()
        one.close()
    assert not (tmp_path / "uids").exists()


def test_a_range_is_free_again_after_closing(tmp_path: Path) -> None:
    first = UidRange(BASE, tmp_path / "uids")
    first.close()
    second = UidRange(BASE, tmp_path / "uids")
    assert second.base == first.base
    second.close()


def test_a_worker_that_is_killed_leaves_its_range_to_the_next(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ol_sandbox_sock.uids import UidRange\n"
        f"r = UidRange({BASE}, Path({str(tmp_path / 'uids')!r})); print(r.base, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert int(process.stdout.readline()) == BASE
        assert uids.clean(tmp_path / "uids") == []
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / "uids" / str(BASE)).exists()
    mine = UidRange(BASE, tmp_path / "uids")
    assert mine.base == BASE
    mine.close()


def test_clean_removes_the_lock_files_of_the_dead_only(tmp_path: Path) -> None:
    live = UidRange(BASE, tmp_path / "uids")
    (tmp_path / "uids" / str(BASE + SIZE)).touch()
    assert uids.clean(tmp_path / "uids") == [f"uid range {BASE + SIZE}"]
    assert [path.name for path in (tmp_path / "uids").iterdir()] == [str(BASE)]
    live.close()
    assert uids.clean(tmp_path / "uids") == []


def test_an_unusable_lock_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackendUnusableError, match="uid lock files"):
        UidRange(BASE, tmp_path / "file" / "uids")


def test_uids_are_unique_until_given_back(tmp_path: Path) -> None:
    mine = UidRange(BASE, tmp_path / "uids")
    taken = [mine.take() for _ in range(SIZE - 1)]
    assert len(set(taken)) == SIZE - 1
    assert mine.base not in taken  # root inside
    with pytest.raises(SandboxUnavailableError, match="are taken"):
        mine.take()
    mine.give_back(taken[7])
    mine.give_back(taken[3])
    assert [mine.take(), mine.take()] == [taken[7], taken[3]]  # the one that was free for longest
    mine.close()


def test_slices_meet_neither_each_other_nor_single_uids(tmp_path: Path) -> None:
    mine = UidRange(BASE, tmp_path / "uids")
    slices = [mine.slice(256) for _ in range(10)]
    inner = slices[0].slice(16)
    spans = [set(range(one.base, one.base + one.size)) for one in slices]
    everything = {uid for span in spans for uid in span}
    assert len(everything) == 10 * 256
    assert set(range(inner.base, inner.base + 16)) < spans[0]
    assert not {mine.take() for _ in range(1000)} & everything
    assert slices[0].take() == slices[0].base + 1
    slices[3].close()
    slices[3].close()
    assert mine.slice(256).base == slices[3].base
    assert mine.slice(256).base < slices[9].base
    with pytest.raises(SandboxUnavailableError, match="in a row"):
        mine.slice(SIZE)
    mine.close()


def test_the_lock_is_not_inherited_through_exec(tmp_path: Path) -> None:
    mine = UidRange(BASE, tmp_path / "uids")
    fd = mine._claim._fd
    assert fd is not None
    assert not os.get_inheritable(fd)
    mine.close()
