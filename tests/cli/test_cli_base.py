"""olcore new --base: what it takes, what it refuses, and what is left of a file system that came from anywhere."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from olcore.cli import base_files, base_python
from olcore.errors import ClusterError
from olcore.interfaces import BaseArchive
from tests.cli.conftest import Cli, Distributions

SOURCE = """
import io
import tarfile
from contextlib import contextmanager

from olcore import hookimpl
from olcore.interfaces import BaseArchive, BaseSource


@contextmanager
def open_made(name):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    yield BaseArchive(chunks=[made.getvalue()])


@hookimpl
def ol_base_sources():
    return [BaseSource(scheme="{scheme}", summary="made up", open=open_made)]
"""


def _tar(*members: tuple[str, Mapping[str, object]]) -> BaseArchive:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, fields in members:
            info = tarfile.TarInfo(name)
            for key, value in fields.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(b"x" * info.size))
    return BaseArchive(chunks=[made.getvalue()])


def _unpack(archive: BaseArchive, target: Path) -> Path:
    target.mkdir()
    base_files.unpack(archive, target, lambda _count: None)
    return target


def test_a_base_that_is_nothing_is_refused_with_what_there_is(cli: Cli) -> None:
    said = cli("new", "--base", "nothing")
    assert (said.code, cli.root.exists()) == (1, False)
    assert "there is no base 'nothing'" in said.err
    assert "'host', a folder, a tar archive" in said.err


def test_an_empty_name_is_not_the_folder_one_stands_in(cli: Cli) -> None:
    assert "there is no base ''" in cli("new", "--base", "").err


def test_a_scheme_that_nobody_knows_names_a_plugin_that_may(cli: Cli) -> None:
    assert "ol-sandbox-podman" in cli("new", "--base", "podman:debian").err


def test_host_leaves_the_base_empty(cli: Cli) -> None:
    assert "Base:" not in cli.ok("new", "--base", "host")
    assert list((cli.root / "base").iterdir()) == []


def test_a_folder_that_holds_the_cluster_is_refused(cli: Cli) -> None:
    said = cli("new", "--base", ".")
    assert (said.code, cli.root.exists()) == (1, False)
    assert "holds the cluster itself" in said.err


@pytest.mark.kernel
class TestSources:
    def test_a_plugin_may_know_a_scheme(self, cli: Cli, distributions: Distributions) -> None:
        distributions.install("ol-base-made", SOURCE.format(scheme="made"))
        # Its archive was unpacked, and lacks what a base must have.
        assert "it has none of /usr/local/bin/python3" in cli("new", "--base", "made:file").err
        assert not cli.root.exists()
        assert "made:NAME" in cli("new", "--base", "nothing").err

    def test_a_source_that_breaks_the_rules_breaks_no_other(
        self, cli: Cli, distributions: Distributions
    ) -> None:
        distributions.install("ol-base-a", SOURCE.format(scheme="made"))
        distributions.install("ol-base-b", SOURCE.format(scheme="made"))
        distributions.install("ol-base-c", SOURCE.format(scheme="No Scheme"))
        distributions.install(
            "ol-base-d",
            "from olcore import hookimpl\n@hookimpl\ndef ol_base_sources():\n    return [1 / 0]\n",
        )
        assert "it has none of" in cli("new", "--base", "made:file").err


@pytest.mark.kernel
class TestUnpacking:
    def test_nothing_in_a_base_gives_rights(self, tmp_path: Path) -> None:
        base = _unpack(
            _tar(
                ("su", {"mode": 0o6755}),
                ("notes", {"mode": 0o666, "uid": 1000, "gid": 1000}),
                ("spool", {"type": tarfile.DIRTYPE, "mode": 0o1777}),
                ("tmp", {"type": tarfile.DIRTYPE, "mode": 0o1777}),
                ("disk", {"type": tarfile.BLKTYPE, "devmajor": 8}),
                ("pipe", {"type": tarfile.FIFOTYPE}),
            ),
            tmp_path / "base",
        )
        modes = {each.name: stat.S_IMODE(each.lstat().st_mode) for each in base.iterdir()}
        assert modes == {"su": 0o755, "notes": 0o664, "spool": 0o1775, "tmp": 0o1777}
        assert {each.stat().st_uid for each in base.iterdir()} == {0}

    def test_folders_that_the_archive_does_not_name_can_be_entered(self, tmp_path: Path) -> None:
        before = os.umask(0o077)
        try:
            base = _unpack(_tar(("usr/bin/python3", {"mode": 0o755})), tmp_path / "base")
        finally:
            os.umask(before)
        assert stat.S_IMODE((base / "usr" / "bin").stat().st_mode) == 0o755
        assert stat.S_IMODE(base.stat().st_mode) == 0o755

    def test_no_link_leads_out(self, tmp_path: Path) -> None:
        (tmp_path / "outside").mkdir()
        link = {"type": tarfile.SYMTYPE, "linkname": str(tmp_path / "outside")}
        with pytest.raises(ClusterError, match="cannot unpack the base"):
            _unpack(_tar(("link", link), ("link/in", {"size": 1})), tmp_path / "base")
        with pytest.raises(ClusterError, match=r"contains '\.\.'"):
            _unpack(_tar(("../outside/in", {"size": 1})), tmp_path / "base2")
        assert list((tmp_path / "outside").iterdir()) == []

    def test_an_absolute_name_is_one_in_the_base(self, tmp_path: Path) -> None:
        base = _unpack(_tar(("/etc/inside", {"size": 1})), tmp_path / "base")
        assert (base / "etc" / "inside").is_file()

    def test_what_every_backend_mounts_itself_is_left_out(self, tmp_path: Path) -> None:
        names = ("dev/null", "./proc/1/status", "sys/kernel", "usr/dev/tool")
        base = _unpack(_tar(*((name, {"size": 1}) for name in names)), tmp_path / "base")
        files = [str(each.relative_to(base)) for each in base.rglob("*") if each.is_file()]
        assert files == ["usr/dev/tool"]

    @pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
    def test_an_archive_may_be_compressed(self, mode: str, tmp_path: Path) -> None:
        path = tmp_path / "rootfs"
        with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
            tar.addfile(tarfile.TarInfo("inside"))
        with base_files.file_archive(path) as archive:
            assert [each.name for each in _unpack(archive, tmp_path / "base").iterdir()] == [
                "inside"
            ]

    def test_a_program_that_is_missing_is_named(
        self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with tarfile.open(tmp_path / "rootfs", "w:xz") as tar:
            tar.addfile(tarfile.TarInfo("inside"))
        monkeypatch.setenv("PATH", str(tmp_path))
        said = cli("new", "--base", "rootfs").err
        assert "compressed by xz" in said
        assert "hint: install xz-utils" in said

    def test_half_an_archive_or_none_says_so(self, cli: Cli, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "whole", "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("inside"))
        (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:30])
        (tmp_path / "text").write_text("no archive" * 100)
        assert (
            "unpack the base: gzip: stdin: unexpected end of file"
            in cli("new", "--base", "cut").err
        )
        assert "This does not look like a tar archive" in cli("new", "--base", "text").err
        assert not cli.root.exists()

    def test_a_folder_comes_with_its_links(self, tmp_path: Path) -> None:
        root = tmp_path / "root"
        (root / "usr" / "bin").mkdir(parents=True)
        (root / "bin").symlink_to("usr/bin")
        (root / "usr" / "bin" / "tool").write_text("#!")
        (root / "etc").mkdir()
        (root / "etc" / "localtime").symlink_to("/usr/share/zoneinfo/UTC")
        with base_files.folder_archive(root) as archive:
            base = _unpack(archive, tmp_path / "base")
        assert str((base / "bin").readlink()) == "usr/bin"
        assert str((base / "etc" / "localtime").readlink()) == "/usr/share/zoneinfo/UTC"
        assert (base / "bin" / "tool").read_text() == "#!"

    def test_a_folder_that_is_gone_says_so(self, tmp_path: Path) -> None:
        with (
            pytest.raises(ClusterError, match=r"cannot read '.*none': .*No such file"),
            base_files.folder_archive(tmp_path / "none") as archive,
        ):
            _unpack(archive, tmp_path / "base")


@pytest.fixture
def shell(tmp_path: Path) -> Path:
    """A base whose python3 is a shell script, to be written by the test."""
    base = tmp_path / "shell"
    found = subprocess.run(["ldd", "/bin/sh"], check=True, capture_output=True, text=True).stdout
    for word in {"/bin/sh", *found.split()}:
        if word.startswith("/"):
            (base / word[1:]).parent.mkdir(parents=True, exist_ok=True)
            (base / word[1:]).write_bytes(Path(word).read_bytes())
            (base / word[1:]).chmod(0o755)
    (base / "usr" / "bin").mkdir(parents=True, exist_ok=True)
    return base


def _python(base: Path, text: str) -> Path:
    path = base / "usr" / "bin" / "python3"
    path.write_text(text)
    path.chmod(0o755)
    return base


@pytest.mark.kernel
class TestPython:
    def test_one_that_can_run_the_guest_is_told_with_its_place(self, shell: Path) -> None:
        said = base_python.require(_python(shell, "#!/bin/sh\necho 3.9.0\n"))
        assert said == "Python 3.9.0 at /usr/bin/python3"

    def test_one_that_is_too_old_is_refused(self, shell: Path) -> None:
        with pytest.raises(ClusterError, match=r"its /usr/bin/python3 is Python 3\.8\.18"):
            base_python.require(_python(shell, "#!/bin/sh\necho 3.8.18\n"))

    def test_what_it_cannot_import_is_named(self, shell: Path) -> None:
        says = "#!/bin/sh\necho 3.11.2\necho 'ctypes (No module named ctypes)'\n"
        with pytest.raises(ClusterError, match=r"Python 3\.11\.2, cannot import ctypes \(No"):
            base_python.require(_python(shell, says))

    def test_one_of_another_machine_says_so(self, shell: Path) -> None:
        foreign = _python(shell, "\x7fELF of another machine")
        # As the whole of such a base is; a shell that runs would take it for a script.
        (foreign / "bin" / "sh").write_text("\x7fELF of another machine")
        with pytest.raises(ClusterError, match=r"does not run: .*Exec format error"):
            base_python.require(foreign)

    def test_it_runs_without_rights(self, shell: Path) -> None:
        says = '#!/bin/sh\nset -e\nread -r pid rest </proc/self/stat || echo "no proc" >&2\n: >/x\n'
        with pytest.raises(ClusterError, match="Permission denied"):
            base_python.require(_python(shell, says))
