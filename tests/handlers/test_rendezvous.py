"""Where worker and guest meet: the folder, its socket and its files."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path

import pytest

from olcore.handlers.rendezvous import Rendezvous, tail


def connect(folder: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(folder, os.O_PATH)
    try:
        client.connect(f"/proc/self/fd/{directory}/server_pipe")
    except OSError:
        client.close()
        raise
    finally:
        os.close(directory)
    return client


async def test_everybody_can_write_to_what_is_made_whatever_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        with Rendezvous(tmp_path):
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(umask)
    assert modes == {"server_pipe": 0o666, "stdout": 0o666, "stderr": 0o666}


async def test_a_folder_too_deep_for_a_sockets_path_will_do(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 200) / ("y" * 200)
    folder.mkdir(parents=True)
    with Rendezvous(folder) as rendezvous:
        client = connect(folder)
        accepted = await rendezvous.accept()
        client.close()
        accepted.close()


async def test_nobody_can_connect_after_the_first(tmp_path: Path) -> None:
    with Rendezvous(tmp_path) as rendezvous:
        client = connect(tmp_path)
        accepted = await rendezvous.accept()
        with pytest.raises(ConnectionRefusedError):
            connect(tmp_path)
        with pytest.raises(ConnectionError, match="connected already"):
            await rendezvous.accept()
        client.close()
        accepted.close()


async def test_what_lies_there_already_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "stdout").symlink_to("/etc/hostname")
    with pytest.raises(FileExistsError), Rendezvous(tmp_path):
        pass
    assert not (tmp_path / "server_pipe").exists()


async def test_a_cancelled_wait_leaves_nothing_open(tmp_path: Path) -> None:
    with Rendezvous(tmp_path) as rendezvous:
        task = asyncio.ensure_future(rendezvous.accept())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(ConnectionRefusedError):
        connect(tmp_path)


def test_the_end_of_an_output_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "stderr").write_bytes(b"x" * 10_000 + b"\xff the end")
    assert tail(tmp_path, "stderr").endswith("\ufffd the end")
    assert len(tail(tmp_path, "stderr")) == 4096


def test_no_link_fifo_or_folder_is_taken_for_an_output_file(tmp_path: Path) -> None:
    (tmp_path / "stdout").symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / "stderr")
    (tmp_path / "other").mkdir()
    assert [tail(tmp_path, name) for name in ("stdout", "stderr", "other", "none")] == [""] * 4
