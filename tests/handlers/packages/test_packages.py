"""From a packages.txt to folders of wheels, with the real uv and an index on disk."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from olcore.errors import PackagesError
from olcore.handlers.packages import Packages
from olcore.handlers.packages.inventory import prune
from olcore.handlers.packages.locks import users
from olcore.handlers.packages.store import installed
from olcore.testing.wheels import THIS_PYTHON, WheelFolder

Make = Callable[..., Packages]
Code = Callable[..., Path]


def names(tmp_path: Path) -> list[str]:
    return [folder.name for folder in installed(tmp_path / "packages")]


def is_tidy(tmp_path: Path) -> bool:
    return not any((tmp_path / "packages" / ".tmp").iterdir())


async def imported(folders: Sequence[Path], program: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-B", "-c"),
        f"import sys; sys.path[:0] = {[str(one) for one in folders]!r}\n{program}",
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode().strip()


async def test_each_wheel_gets_a_folder_of_its_own_dependencies_too(
    make_packages: Make, code: Code, tmp_path: Path
) -> None:
    wanted = await make_packages().prepare(code("alpha\n"))

    assert names(tmp_path) == ["alpha-1.0-py3-none-any", "beta-2.0-py3-none-any"]
    assert [wheel.folder for wheel in wanted.wheels] == names(tmp_path)
    assert [wheel.modules for wheel in wanted.wheels] == [{"alpha"}, {"beta"}]
    assert wanted.handler == "greet"
    assert wanted.modules == {"lambda_func"}
    out = await imported(
        installed(tmp_path / "packages"), "import alpha; print(alpha.beta.version)"
    )
    assert out == "2.0"
    assert is_tidy(tmp_path)


async def test_a_handler_without_a_file_wants_nothing(
    make_packages: Make, code: Code, tmp_path: Path
) -> None:
    wanted = await make_packages().prepare(code("", file="notes.txt"))
    assert wanted.wheels == ()
    assert not (tmp_path / "packages").exists()


async def test_several_versions_coexist(make_packages: Make, code: Code, tmp_path: Path) -> None:
    packages = make_packages()
    await packages.prepare(code("beta==1.2", handler="old"))
    await packages.prepare(code("beta", handler="new"))
    assert names(tmp_path) == ["beta-1.2-py3-none-any", "beta-2.0-py3-none-any"]


async def test_a_restart_resolves_nothing(
    make_packages: Make, code: Code, index: WheelFolder, tmp_path: Path
) -> None:
    before = await make_packages().prepare(code("beta"))
    index.add("beta", "3.0", {"beta.py": ""})
    assert await make_packages().prepare(code("beta")) == before
    # And needs neither index nor cache.
    shutil.rmtree(index.folder)
    shutil.rmtree(tmp_path / "uv-cache")
    assert await make_packages().prepare(code("beta")) == before


async def test_a_wheel_that_was_removed_is_installed_again_as_it_was_pinned(
    make_packages: Make, code: Code, index: WheelFolder, tmp_path: Path
) -> None:
    before = await make_packages().prepare(code("beta"))
    index.add("beta", "3.0", {"beta.py": ""})
    shutil.rmtree(tmp_path / "packages" / "beta-2.0-py3-none-any")
    assert await make_packages().prepare(code("beta")) == before
    assert names(tmp_path) == ["beta-2.0-py3-none-any"]


async def test_two_workers_that_want_the_same_wheel_install_it_once(
    make_packages: Make, code: Code, tmp_path: Path
) -> None:
    compiled: list[Path] = []

    async def compile_bytecode(folder: Path) -> None:
        compiled.append(folder)

    workers = [make_packages(compile_bytecode=compile_bytecode) for _ in range(2)]
    first, second = code("alpha", handler="a"), code("beta\n# differs", handler="b")
    await asyncio.gather(*(one.prepare(each) for one in workers for each in (first, second)))
    assert len(compiled) == 2
    assert names(tmp_path) == ["alpha-1.0-py3-none-any", "beta-2.0-py3-none-any"]


async def test_a_caller_that_gives_up_does_not_stop_the_installation(
    make_packages: Make, code: Code
) -> None:
    packages = make_packages()
    folder = code("beta")
    impatient = asyncio.create_task(packages.prepare(folder))
    patient = asyncio.create_task(packages.prepare(folder))
    while not packages._running:
        await asyncio.sleep(0)
    impatient.cancel()
    assert len((await patient).wheels) == 1


async def test_an_unknown_package_is_told_with_uvs_reason_and_remembered(
    make_packages: Make, code: Code, index: WheelFolder, tmp_path: Path
) -> None:
    packages = make_packages()
    with pytest.raises(PackagesError) as caught:
        await packages.prepare(code("gamma"))
    assert caught.value.message.startswith("cannot resolve gamma: No solution found")
    assert "gamma was not found" in caught.value.message
    assert caught.value.retry_after_s == 60

    index.add("gamma", "1.0", {"gamma.py": ""})
    with pytest.raises(PackagesError) as caught:
        await packages.prepare(code("gamma"))
    assert caught.value.retry_after_s is not None
    assert 0 < caught.value.retry_after_s <= 60
    # Another content of the file is tried at once.
    assert (await packages.prepare(code("gamma==1.0"))).wheels


async def test_a_failure_is_tried_again_after_a_while(
    make_packages: Make, code: Code, index: WheelFolder
) -> None:
    packages = make_packages(retry_s=0)
    with pytest.raises(PackagesError):
        await packages.prepare(code("gamma"))
    index.add("gamma", "1.0", {"gamma.py": ""})
    assert (await packages.prepare(code("gamma"))).wheels


async def test_a_conflict_is_explained(make_packages: Make, code: Code) -> None:
    with pytest.raises(PackagesError, match=r"beta==1\.2.*beta==2\.0.*unsatisfiable"):
        await make_packages().prepare(code("beta==1.2\nbeta==2.0"))


async def test_a_package_without_a_wheel_for_the_guest_is_refused(
    make_packages: Make, code: Code, index: WheelFolder, tmp_path: Path
) -> None:
    index.add("winning", "1.0", {"winning.py": ""}, tag="cp311-cp311-win_amd64")
    with pytest.raises(PackagesError, match="winning"):
        await make_packages().prepare(code("winning"))
    assert not (tmp_path / "packages").exists()


async def test_an_index_that_does_not_answer_is_no_hang(
    make_packages: Make, code: Code, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://me:hunter2@127.0.0.1:{server.getsockname()[1]}/simple"
        packages = make_packages(offline=False, find_links="", index=url, timeout_s=0.3)
        with pytest.raises(PackagesError, match=r"uv did not end within 0\.3 s") as caught:
            await packages.prepare(code("beta"))
    assert "hunter2" not in str(caught.value.details) + caught.value.message


async def test_a_refused_connection_is_told_without_the_password(
    make_packages: Make, code: Code, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    url = "http://me:hunter2@127.0.0.1:9/simple"
    packages = make_packages(offline=False, find_links="", index=url)
    with pytest.raises(PackagesError, match=r"127\.0\.0\.1:9") as caught:
        await packages.prepare(code("beta"))
    assert "hunter2" not in str(caught.value.details) + caught.value.message


async def test_what_a_crash_left_is_cleared_by_the_next_installation(
    make_packages: Make, code: Code, tmp_path: Path
) -> None:
    packages = make_packages()
    await packages.prepare(code("beta"))
    record = next((tmp_path / "packages" / ".wheels").glob("beta-2.0*.json"))
    shutil.rmtree(tmp_path / "packages" / "beta-2.0-py3-none-any")
    half = tmp_path / "packages" / ".tmp" / record.stem
    (half / "beta-2.0.dist-info").mkdir(parents=True)
    (half / "rubbish.py").write_text("")
    await packages.prepare(code("beta"))
    assert not (tmp_path / "packages" / "beta-2.0-py3-none-any" / "rubbish.py").exists()
    assert is_tidy(tmp_path)


async def test_a_crash_before_the_record_was_written_needs_no_hand(
    make_packages: Make, code: Code, tmp_path: Path
) -> None:
    await make_packages().prepare(code("beta"))
    for record in (tmp_path / "packages" / ".wheels").glob("*.json"):
        record.unlink()
    assert (await make_packages().prepare(code("beta"))).wheels
    assert names(tmp_path) == ["beta-2.0-py3-none-any"]


async def test_another_build_of_the_same_version_gets_another_folder(
    make_packages: Make, code: Code, index: WheelFolder, tmp_path: Path
) -> None:
    await make_packages().prepare(code("beta==2.0", handler="first"))
    index.add("beta", "2.0", {"beta.py": "version = '2.0 of somebody else'\n"})
    shutil.rmtree(tmp_path / "uv-cache")
    wanted = await make_packages().prepare(code("beta == 2.0", handler="second"))
    (folder,) = {wheel.folder for wheel in wanted.wheels}
    assert folder.startswith("beta-2.0-py3-none-any-")
    assert (tmp_path / "packages" / folder / "beta.py").read_text().endswith("else'\n")


async def test_bytecode_is_there_before_the_folder_is(
    make_packages: Make, code: Code, tmp_path: Path
) -> None:
    await make_packages().prepare(code("beta"))
    cached = tmp_path / "packages" / "beta-2.0-py3-none-any" / "__pycache__"
    assert (cached / f"beta.{sys.implementation.cache_tag}.pyc").is_file()


async def test_each_kind_of_guest_adds_its_own_bytecode_to_the_same_folder(
    make_packages: Make, code: Code, tmp_path: Path
) -> None:
    async def of_another(folder: Path) -> None:
        (folder / "__pycache__").mkdir(exist_ok=True)
        (folder / "__pycache__" / "beta.other.pyc").touch()

    other = msgspec.structs.replace(THIS_PYTHON, python="3.12.1")
    await make_packages(guest=other, compile_bytecode=of_another).prepare(code("beta"))
    await make_packages().prepare(code("beta"))
    cached = tmp_path / "packages" / "beta-2.0-py3-none-any" / "__pycache__"
    own = f"beta.{sys.implementation.cache_tag}.pyc"
    assert sorted(path.name for path in cached.iterdir()) == sorted(["beta.other.pyc", own])
    assert names(tmp_path) == ["beta-2.0-py3-none-any"]


async def test_a_source_with_bad_syntax_hurts_nothing_else(
    make_packages: Make, code: Code, index: WheelFolder, tmp_path: Path
) -> None:
    index.add("delta", "1", {"delta/__init__.py": "", "delta/py2.py": "print 'old'\n"})
    await make_packages().prepare(code("delta"))
    assert len(list((tmp_path / "packages").rglob("*.pyc"))) == 1


async def test_the_umask_of_the_worker_does_not_hide_packages(
    make_packages: Make, code: Code, tmp_path: Path
) -> None:
    before = os.umask(0o077)
    try:
        await make_packages().prepare(code("alpha"))
    finally:
        os.umask(before)
    for folder in installed(tmp_path / "packages"):
        for path in (folder, *folder.rglob("*")):
            assert path.stat().st_mode & stat.S_IROTH, path
    for name in (".wheels", ".tmp"):
        assert stat.S_IMODE((tmp_path / "packages" / name).stat().st_mode) == 0o700


async def test_namespace_packages_and_pth_files_are_told(
    make_packages: Make, code: Code, index: WheelFolder
) -> None:
    index.add("ns.one", "1", {"ns/one/__init__.py": "", "ns/data.txt": ""})
    index.add("ns.two", "1", {"ns/two.py": "", "ns_two.pth": "lib\n", "lib/extra.py": ""})
    wanted = await make_packages().prepare(code("ns.one\nns.two"))
    assert [(wheel.modules, wheel.pth) for wheel in wanted.wheels] == [
        (frozenset({"ns.one"}), False),
        (frozenset({"ns.two", "lib.extra"}), True),
    ]


async def test_entry_points_are_found_through_the_folders(
    make_packages: Make, code: Code, index: WheelFolder, tmp_path: Path
) -> None:
    index.add(
        "eps", "1", {"eps.py": "", "eps-1.dist-info/entry_points.txt": "[things]\nit = eps:it\n"}
    )
    await make_packages().prepare(code("eps"))
    program = "from importlib.metadata import entry_points as e; print([x.name for x in e(group='things')])"
    assert await imported(installed(tmp_path / "packages"), program) == "['it']"


async def test_who_uses_what_is_kept(make_packages: Make, code: Code, tmp_path: Path) -> None:
    packages = make_packages()
    await packages.prepare(code("alpha", handler="a"))
    await packages.prepare(code("beta==1.2", handler="b"))
    assert {one.handler: one.folders for one in users(tmp_path / "locks")} == {
        "a": ("alpha-1.0-py3-none-any", "beta-2.0-py3-none-any"),
        "b": ("beta-1.2-py3-none-any",),
    }
    await packages.prepare(code("# nothing more", handler="b"))
    assert users(tmp_path / "locks")[1].folders == ()


async def test_a_private_folder_shows_the_handlers_own_wheels_only(
    make_packages: Make, code: Code, tmp_path: Path
) -> None:
    packages = make_packages(private=True)
    await packages.prepare(code("alpha", handler="a"))
    wanted = await packages.prepare(code("beta==1.2", handler="b"))
    folder = await packages.folder(wanted)
    assert [one.name for one in folder.iterdir()] == ["beta-1.2-py3-none-any"]
    shared = tmp_path / "packages" / "beta-1.2-py3-none-any" / "beta.py"
    assert (folder / "beta-1.2-py3-none-any" / "beta.py").samefile(shared)
    assert await packages.folder(wanted) == folder


async def test_without_privacy_everybody_sees_the_same_folder(
    make_packages: Make, code: Code, tmp_path: Path
) -> None:
    packages = make_packages()
    assert await packages.folder(await packages.prepare(code("beta"))) == tmp_path / "packages"


@pytest.mark.slow
async def test_a_package_of_the_real_index_is_installed(
    make_packages: Make, code: Code, tmp_path: Path
) -> None:
    packages = make_packages(offline=False, find_links="")
    wanted = await packages.prepare(code("six:six==1.16.0"))
    assert [wheel.folder for wheel in wanted.wheels] == ["six-1.16.0-py2.py3-none-any"]


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_native_wheel_of_the_real_index_is_imported(
    make_packages: Make, code: Code, tmp_path: Path
) -> None:
    packages = make_packages(offline=False, find_links="")
    wanted = await packages.prepare(code("numpy"))
    (wheel,) = wanted.wheels
    assert "numpy" in wheel.modules
    out = await imported(
        [tmp_path / "packages" / wheel.folder], "import numpy; print(numpy.ones(3).sum())"
    )
    assert out == "3.0"


async def test_removing_a_wheel_frees_its_private_views_too(
    make_packages: Make, code: Code, tmp_path: Path
) -> None:
    packages = make_packages(private=True)
    gone = await packages.folder(await packages.prepare(code("beta==1.2", handler="gone")))
    kept = await packages.folder(await packages.prepare(code("beta", handler="kept")))
    removed = await prune(tmp_path / "packages", tmp_path / "locks", ["kept"])
    assert [one.wheel for one in removed] == ["beta-1.2-py3-none-any"]
    assert not gone.exists()
    assert kept.is_dir()
    assert (await packages.prepare(code("beta==1.2", handler="gone"))).wheels


async def test_a_handler_is_compiled_once_and_if_that_is_felt(
    make_packages: Make, code: Code
) -> None:
    compiled: list[Path] = []

    async def compile_bytecode(folder: Path) -> None:
        compiled.append(folder)
        (folder / "below" / "__pycache__").mkdir()

    packages = make_packages(compile_bytecode=compile_bytecode)
    folder = code("")
    await packages.compile(folder)
    assert compiled == []
    (folder / "below").mkdir()
    (folder / "below" / "much.py").write_text("x = 1\n" * 200)
    await packages.compile(folder)
    await packages.compile(folder)
    assert compiled == [folder]
