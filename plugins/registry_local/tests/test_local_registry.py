"""The local registry keeps the contract, and what only folders do."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from ol_registry_local.plugin import LocalSettings, ol_registry_backends
from ol_registry_local.registry import LocalRegistry
from ol_registry_local.walk import Walk
from olcore.errors import (
    BadNameError,
    HandlerInvalidError,
    HandlerNotFoundError,
    RegistryUnavailableError,
)
from olcore.interfaces import HandlerVersion, Registry
from olcore.testing.registry import BOUNDS, WritableRegistryContract, make_bundle, registry_context


class TestLocalContract(WritableRegistryContract):
    @pytest.fixture
    def make_registry(self, tmp_path: Path) -> Callable[[], Registry]:
        [backend] = ol_registry_backends()
        context = registry_context(tmp_path / "registry")
        return lambda: backend.make(context, LocalSettings(settle_ms=5))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "registry"
    folder.mkdir()
    return folder


@pytest.fixture
async def registry(folder: Path) -> AsyncIterator[LocalRegistry]:
    registry = LocalRegistry(registry_context(folder), settle_s=0.01)
    await registry.start()
    yield registry
    await registry.close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    target = tmp_path / "target"
    target.mkdir()
    return target


def write_handler(folder: Path, name: str = "hello", files: int = 1) -> Path:
    handler = folder / name
    handler.mkdir()
    (handler / "lambda_func.py").write_text("def handler(event): return 1\n")
    for number in range(1, files):
        (handler / f"module_{number}.py").write_text("")
    return handler


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


async def pull(registry: Registry, name: str, target: Path) -> HandlerVersion:
    return await registry.pull(await registry.lookup(name), target)


@pytest.mark.parametrize("files", [1, 50])
async def test_an_edited_file_is_a_new_version(
    registry: LocalRegistry, folder: Path, target: Path, files: int
) -> None:
    handler = write_handler(folder, files=files)
    old = await registry.lookup("hello")
    (handler / "lambda_func.py").write_text("def handler(event): return 2\n")
    deadline = time.monotonic() + 10
    while (new := await registry.lookup("hello")) == old:
        # A large folder is walked at most every 100 ms.
        assert files > 32
        assert time.monotonic() < deadline
        await asyncio.sleep(0)
    assert await registry.pull(old, target) == new
    assert "return 2" in (target / "lambda_func.py").read_text()


async def test_an_added_and_a_removed_file_are_new_versions(
    registry: LocalRegistry, folder: Path
) -> None:
    handler = write_handler(folder)
    first = await registry.lookup("hello")
    (handler / "below").mkdir()
    (handler / "below" / "more.py").write_text("")
    second = await registry.lookup("hello")
    (handler / "below" / "more.py").unlink()
    third = await registry.lookup("hello")
    assert len({first, second, third}) == 3


async def test_running_a_handler_by_hand_makes_no_new_version(
    registry: LocalRegistry, folder: Path, target: Path
) -> None:
    handler = write_handler(folder)
    before = await registry.lookup("hello")
    (handler / "__pycache__").mkdir()
    (handler / "__pycache__" / "lambda_func.cpython-311.pyc").write_bytes(b"")
    assert await registry.lookup("hello") == before
    await registry.pull(before, target)
    assert names_in(target) == ["lambda_func.py"]


async def test_a_copy_in_progress_is_not_taken_for_the_code(folder: Path) -> None:
    registry = LocalRegistry(registry_context(folder), settle_s=0.3)
    handler = write_handler(folder)
    looking = asyncio.create_task(registry.lookup("hello"))
    # Let it make its first walk, which comes too early.
    await asyncio.sleep(0)
    (handler / "late.py").write_text("")
    found = await looking
    assert found == await registry.lookup("hello")
    await registry.close()


async def test_a_handler_can_be_a_link_to_where_it_is_kept(
    registry: LocalRegistry, folder: Path, tmp_path: Path, target: Path
) -> None:
    one, two = write_handler(tmp_path, "one"), write_handler(tmp_path, "two")
    (folder / "hello").symlink_to(one)
    first = await pull(registry, "hello", target)
    assert (target / "lambda_func.py").exists()
    (folder / "hello").unlink()
    (folder / "hello").symlink_to(two)
    assert await registry.lookup("hello") != first


async def test_a_folder_counts_before_a_bundle(
    registry: LocalRegistry, folder: Path, tmp_path: Path, target: Path
) -> None:
    bundle = make_bundle(tmp_path, {"lambda_func.py": "bundle"})
    published = await registry.publish("hello", bundle)
    assert await registry.lookup("hello") == published
    write_handler(folder)
    assert await pull(registry, "hello", target) != published
    assert "handler" in (target / "lambda_func.py").read_text()
    assert [found.name for found in await registry.names()] == ["hello"]
    published = await registry.publish("hello", bundle)
    assert await registry.lookup("hello") == published
    assert not (folder / "hello").exists()


async def test_removing_a_linked_handler_leaves_what_it_links_to(
    registry: LocalRegistry, folder: Path, tmp_path: Path
) -> None:
    kept = write_handler(tmp_path, "kept")
    (folder / "hello").symlink_to(kept)
    await registry.remove("hello")
    assert (kept / "lambda_func.py").exists()
    assert names_in(folder) == [".lock"]


async def test_a_link_inside_is_kept_and_one_out_is_refused(
    registry: LocalRegistry, folder: Path, target: Path
) -> None:
    handler = write_handler(folder)
    (handler / "again.py").symlink_to("lambda_func.py")
    await pull(registry, "hello", target)
    assert (target / "again.py").readlink() == Path("lambda_func.py")
    (handler / "out").symlink_to("../../secret")
    for entry in list(target.iterdir()):
        entry.unlink()
    with pytest.raises(HandlerInvalidError, match="'out' is a link that can lead out"):
        await pull(registry, "hello", target)
    assert names_in(target) == []


async def test_a_socket_is_refused_and_a_setuid_bit_dropped(
    registry: LocalRegistry, folder: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = write_handler(folder)
    (handler / "lambda_func.py").chmod(0o4700)
    await pull(registry, "hello", target)
    assert stat.S_IMODE((target / "lambda_func.py").stat().st_mode) == 0o755
    (target / "lambda_func.py").unlink()
    # A relative name, because a socket's path must be short.
    monkeypatch.chdir(handler)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        with pytest.raises(HandlerInvalidError, match="'socket' is neither"):
            await pull(registry, "hello", target)


async def test_too_many_files_are_refused(
    registry: LocalRegistry, folder: Path, target: Path
) -> None:
    write_handler(folder, files=BOUNDS.max_files + 1)
    with pytest.raises(HandlerInvalidError, match="max_bundle_files"):
        await pull(registry, "hello", target)
    assert names_in(target) == []


async def test_a_missing_handler_names_the_folder_and_near_names(
    registry: LocalRegistry, folder: Path
) -> None:
    write_handler(folder, "hello")
    with pytest.raises(HandlerNotFoundError) as caught:
        await registry.lookup("helo")
    assert str(folder) in caught.value.message
    assert caught.value.hint is not None
    assert "did you mean 'hello'? add it with: cp -r" in caught.value.hint


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    registry = LocalRegistry(registry_context(tmp_path / "nowhere"))
    with pytest.raises(HandlerNotFoundError, match="there is no registry folder"):
        await registry.lookup("hello")
    assert list(await registry.names()) == []
    with pytest.raises(HandlerNotFoundError):
        await registry.remove("hello")


async def test_names_with_a_dot_in_front_are_ours(
    registry: LocalRegistry, folder: Path, tmp_path: Path
) -> None:
    (folder / ".hidden").mkdir()
    assert list(await registry.names()) == []
    with pytest.raises(HandlerNotFoundError):
        await registry.lookup(".hidden")
    with pytest.raises(BadNameError):
        await registry.publish(".hidden", make_bundle(tmp_path, {"lambda_func.py": ""}))


async def test_what_a_dead_publisher_left_is_swept(
    registry: LocalRegistry, folder: Path, tmp_path: Path
) -> None:
    (folder / ".arriving-hello").write_bytes(b"half")
    write_handler(folder, ".leaving-hello")
    await registry.publish("hello", make_bundle(tmp_path, {"lambda_func.py": ""}))
    assert names_in(folder) == [".lock", "hello.tar.gz"]


async def test_a_publisher_that_holds_the_lock_too_long_is_reported(
    folder: Path, tmp_path: Path
) -> None:
    registry = LocalRegistry(registry_context(folder, timeout_s=0.05))
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RegistryUnavailableError, match="somebody else"):
            await registry.publish("hello", make_bundle(tmp_path, {"lambda_func.py": ""}))


async def test_a_caller_that_goes_away_takes_no_answer_from_others(
    registry: LocalRegistry, folder: Path
) -> None:
    write_handler(folder, files=50)
    first = asyncio.create_task(registry.lookup("hello"))
    second = asyncio.create_task(registry.lookup("hello"))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).name == "hello"


def test_a_file_that_is_being_truncated_is_known_by_its_mtime() -> None:
    def seen(*signatures: tuple[str, tuple[int, int, int, int]]) -> Walk:
        return Walk("version", 0.0, signatures)

    whole = seen(("a.py", (2000, 7, 1, 0o100644)), ("b.py", (10, 7, 2, 0o100644)))
    assert seen(("a.py", (0, 7, 1, 0o100644))).is_torn(whole)
    assert not seen(("a.py", (0, 8, 1, 0o100644))).is_torn(whole), "written to in the usual way"
    assert not seen(("a.py", (0, 7, 3, 0o100644))).is_torn(whole), "another file under that name"
    assert not seen(("c.py", (0, 7, 1, 0o100644))).is_torn(whole)
    assert not whole.is_torn(whole)
    assert not whole.is_torn(None)
