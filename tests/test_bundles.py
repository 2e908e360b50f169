"""Bundles: archives and folders of handlers, unpacked safely."""

from __future__ import annotations

import gzip
import io
import os
import socket
import stat
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from olcore.bundles import MAX_DEPTH, Bounds, copy, pack, unpack
from olcore.errors import HandlerInvalidError, RegistryError

BOUNDS = Bounds(max_mb=1, max_files=40)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    target = tmp_path / "target"
    target.mkdir()
    return target


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar_of(*members: tarfile.TarInfo, contents: bytes = b"") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for info in members:
            info.size = len(contents) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(contents))
    return out.getvalue()


def write(folder: Path, data: bytes) -> Path:
    bundle = folder / "evil.tar.gz"
    bundle.write_bytes(data)
    return bundle


def contents_of(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): path.readlink()
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }


def test_what_is_packed_comes_out_the_same(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "source"
    (source / "below" / "empty").mkdir(parents=True)
    (source / "__pycache__").mkdir()
    (source / "lambda_func.py").write_text("def handler(event): ...")
    (source / "below" / "run").write_bytes(b"#!/bin/sh\n")
    (source / "below" / "run").chmod(0o4711)
    (source / "below" / "up").symlink_to("../lambda_func.py")
    pack(source, tmp_path / "one.tar.gz", BOUNDS)
    unpack(tmp_path / "one.tar.gz", target, BOUNDS)
    (source / "__pycache__").rmdir()
    assert contents_of(target) == contents_of(source)
    assert stat.S_IMODE((target / "below" / "run").stat().st_mode) == 0o755
    assert stat.S_IMODE((target / "lambda_func.py").stat().st_mode) == 0o644


def test_the_same_contents_pack_to_the_same_bytes(tmp_path: Path) -> None:
    packed = []
    for number in range(2):
        source = tmp_path / f"source-{number}"
        source.mkdir()
        for name in ("b", "a", "ü") if number else ("ü", "a", "b"):
            (source / name).write_text(name)
            os.utime(source / name, (number, number))
        pack(source, tmp_path / f"{number}.tar.gz", BOUNDS)
        packed.append((tmp_path / f"{number}.tar.gz").read_bytes())
    assert packed[0] == packed[1]


def test_modes_do_not_depend_on_the_umask(tmp_path: Path, target: Path) -> None:
    bundle = write(tmp_path, gzip.compress(tar_of(member("a/b", mode=0o600))))
    before = os.umask(0o077)
    try:
        unpack(bundle, target, BOUNDS)
    finally:
        os.umask(before)
    assert stat.S_IMODE((target / "a").stat().st_mode) == 0o755
    assert stat.S_IMODE((target / "a" / "b").stat().st_mode) == 0o644


DEEP = "d/" * MAX_DEPTH + "f"
BAD_MEMBERS = {
    "absolute": ([member("/etc/passwd")], "'/etc/passwd' is an absolute path"),
    "up": ([member("a/../../b")], r"'a/../../b' leads out"),
    "absolute link": ([member("l", tarfile.SYMTYPE, linkname="/etc")], "'l' is a link that can"),
    "link up": ([member("a/l", tarfile.SYMTYPE, linkname="../../x")], "'a/l' is a link that can"),
    "link down and up": ([member("l", tarfile.SYMTYPE, linkname="a/..")], "'l' is a link that can"),
    "empty link": ([member("l", tarfile.SYMTYPE, linkname="")], "'l' is a link that can"),
    "through a link": (
        [member("l", tarfile.SYMTYPE, linkname="x"), member("l/passwd")],
        "'l/passwd' is there twice|'l/passwd' lies below|'l/passwd' is there twice, or lies below",
    ),
    "hard link out": ([member("h", tarfile.LNKTYPE, linkname="/etc/passwd")], "'h'|absolute"),
    "hard link to nothing": ([member("h", tarfile.LNKTYPE, linkname="x")], "'h' is a hard link to"),
    "hard link to a link": (
        [
            member("a/b/l", tarfile.SYMTYPE, linkname="../.."),
            member("h", tarfile.LNKTYPE, linkname="a/b/l"),
        ],
        "'h' is a hard link to",
    ),
    "device": ([member("null", tarfile.CHRTYPE)], "'null' is a device"),
    "block device": ([member("sda", tarfile.BLKTYPE)], "'sda' is a device"),
    "pipe": ([member("p", tarfile.FIFOTYPE)], "'p' is a pipe"),
    "unknown": ([member("u", b"Z")], "'u'"),
    "setuid": ([member("s", mode=0o4755)], "'s' has a setuid"),
    "setgid": ([member("s", mode=0o2755)], "'s' has a setuid or setgid"),
    "twice": ([member("a"), member("a")], "'a' is there twice"),
    "file, then folder": ([member("a"), member("a", tarfile.DIRTYPE)], "'a' is there twice"),
    "below a file": ([member("a"), member("a/b")], "'a/b' is there twice"),
    "the top itself": ([member(".")], "'.' is there twice"),
    "deep": ([member(DEEP)], "is in more than 64 folders"),
    "long": ([member("x" * 300)], "cannot be stored: File name too long"),
    "many": ([member(str(n)) for n in range(41)], "'39' is one too many"),
    "many folders": ([member("d/" * 30), member("e/" * 30)], "is one too many"),
}


@pytest.mark.parametrize(("members", "fault"), BAD_MEMBERS.values(), ids=BAD_MEMBERS.keys())
def test_an_unsafe_member_is_named_and_leaves_nothing(
    tmp_path: Path, target: Path, members: list[tarfile.TarInfo], fault: str
) -> None:
    bundle = write(tmp_path, gzip.compress(tar_of(member("first"), *members)))
    with pytest.raises(HandlerInvalidError, match=fault) as caught:
        unpack(bundle, target, BOUNDS, "handler 'x'")
    assert caught.value.message.startswith("handler 'x'")
    assert contents_of(target) == {}


def test_a_sparse_member_is_refused(tmp_path: Path, target: Path) -> None:
    info = member("s")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s"}
    info.pax_headers |= {"GNU.sparse.realsize": "8000000000"}
    bundle = write(tmp_path, gzip.compress(tar_of(info, contents=b"1\n0\n0\n".ljust(512, b"\0"))))
    with pytest.raises(HandlerInvalidError, match="a sparse file"):
        unpack(bundle, target, BOUNDS)


def test_names_in_the_way_of_json_are_escaped(tmp_path: Path, target: Path) -> None:
    bundle = write(tmp_path, gzip.compress(tar_of(member("\udcff", tarfile.FIFOTYPE))))
    with pytest.raises(HandlerInvalidError) as caught:
        unpack(bundle, target, BOUNDS)
    caught.value.message.encode()
    assert caught.value.details == {"member": "\\udcff"}


WHOLE = tar_of(member("a"), member("b"), contents=b"x" * 700)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "is empty"),
        (b"\x1f", "is not gzip"),
        (b"PK\x03\x04", "is not gzip"),
        (b"\x1f\x8b", "damaged"),
        (gzip.compress(WHOLE)[:-9], "damaged or truncated"),
        (gzip.compress(WHOLE)[:40], "damaged or truncated"),
        (gzip.compress(WHOLE)[:-8] + b"\0" * 8, "damaged"),
        (gzip.compress(WHOLE) + b"garbage", "damaged"),
        (gzip.compress(b"not a tar"), "damaged or truncated"),
        (gzip.compress(b""), "damaged or truncated"),
        (gzip.compress(WHOLE[:600]), "damaged or truncated"),
        (gzip.compress(WHOLE[: 3 * 512]), "no end mark"),
    ],
)
def test_a_damaged_bundle_says_how_and_leaves_nothing(
    tmp_path: Path, target: Path, data: bytes, fault: str
) -> None:
    bundle = write(tmp_path, data)
    with pytest.raises(HandlerInvalidError, match=fault):
        unpack(bundle, target, BOUNDS)
    assert contents_of(target) == {}


def test_a_bomb_is_stopped_at_its_declared_size(tmp_path: Path, target: Path) -> None:
    bundle = write(tmp_path, gzip.compress(tar_of(member("zeros"), contents=bytes((1 << 20) + 1))))
    with pytest.raises(HandlerInvalidError, match=r"'zeros' is too much: .* bigger than 1 MiB"):
        unpack(bundle, target, BOUNDS)


def test_a_bomb_behind_the_end_mark_is_stopped_too(tmp_path: Path, target: Path) -> None:
    bundle = write(tmp_path, gzip.compress(WHOLE + bytes(4 << 20)))
    with pytest.raises(HandlerInvalidError, match="unpacks to more than 1 MiB"):
        unpack(bundle, target, BOUNDS)


def test_a_bomb_in_an_extended_header_is_not_read(tmp_path: Path, target: Path) -> None:
    header = member("x", tarfile.XHDTYPE)
    header.size = 1 << 33
    bundle = write(tmp_path, gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(4096)))
    with pytest.raises(HandlerInvalidError, match="an extended header has 8589934592 bytes"):
        unpack(bundle, target, BOUNDS)


def test_a_chain_of_extended_headers_ends(tmp_path: Path, target: Path) -> None:
    header = member("x", tarfile.XHDTYPE)
    bundle = write(tmp_path, gzip.compress(header.tobuf() * 1100 + bytes(1024)))
    with pytest.raises(HandlerInvalidError, match="damaged"):
        unpack(bundle, target, BOUNDS)


def test_everything_a_bundle_may_hold_comes_out(tmp_path: Path, target: Path) -> None:
    data = tar_of(
        member("./", tarfile.DIRTYPE, mode=0o2775),
        member("./a/b.py", mode=0o755),
        member("l", tarfile.SYMTYPE, linkname="./a/b.py"),
        member("a/l", tarfile.SYMTYPE, linkname="../a"),
        member("h", tarfile.LNKTYPE, linkname="a/b.py"),
        contents=b"code",
    )
    unpack(write(tmp_path, gzip.compress(data)), target, BOUNDS)
    assert (target / "h").read_bytes() == (target / "l").read_bytes() == b"code"
    assert (target / "a" / "l").resolve() == target / "a"


def test_exactly_the_limits_are_allowed(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "big").write_bytes(os.urandom(1 << 20))
    for number in range(39):
        (source / f"{number}").touch()
    pack(source, tmp_path / "b.tar.gz", BOUNDS)
    unpack(tmp_path / "b.tar.gz", target, BOUNDS)
    assert len(contents_of(target)) == 40


@pytest.mark.parametrize("bring", [copy, pack])
def test_a_folder_with_a_socket_is_refused(
    tmp_path: Path,
    target: Path,
    bring: Callable[[Path, Path, Bounds], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    monkeypatch.chdir(source)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        with pytest.raises(HandlerInvalidError, match="'s' is neither a file"):
            bring(source, target if bring is copy else tmp_path / "b.tar.gz", BOUNDS)
    assert contents_of(target) == {}


def test_what_cannot_be_read_is_named(tmp_path: Path, target: Path) -> None:
    for bring in (copy, unpack):
        with pytest.raises(RegistryError, match="No such file or directory"):
            bring(tmp_path / "missing", target, BOUNDS)
    with pytest.raises(RegistryError, match="missing"):
        pack(tmp_path / "missing", tmp_path / "b.tar.gz", BOUNDS)


NAMES = st.lists(
    st.sampled_from(["a", "b", "..", ".", "", "/", "l", "c" * 260, "\udc80"]), max_size=4
).map("/".join)
KINDS = st.sampled_from([b"0", b"0", b"5", b"2", b"2", b"1", b"1", b"3", b"6", b"7", b"\0"])
MEMBERS = st.lists(
    st.builds(
        lambda name, kind, to, mode: member(name or "x", kind, linkname=to, mode=mode),
        NAMES,
        KINDS,
        NAMES,
        st.sampled_from([0o644, 0o755, 0o4755, 0]),
    ),
    max_size=8,
)


def check_inside(outer: Path, target: Path) -> None:
    """Nothing but *target* is there, and nothing in it leads out."""
    assert [path.name for path in outer.iterdir()] == ["target"]
    for path in target.rglob("*"):
        assert not path.lstat().st_mode & (stat.S_ISUID | stat.S_ISGID)
        assert path.is_symlink() or path.is_file() or path.is_dir()
        try:
            assert path.resolve().is_relative_to(target.resolve())
        except (RuntimeError, OSError):
            continue  # a link to itself leads nowhere


def unpack_somewhere(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outer = Path(folder) / "outer"
        target = outer / "target"
        target.mkdir(parents=True)
        try:
            unpack(write(Path(folder), data), target, BOUNDS)
        except HandlerInvalidError:
            assert list(target.iterdir()) == []
        check_inside(outer, target)


FUZZ = settings(max_examples=150)


@FUZZ
@given(members=MEMBERS)
def test_no_archive_of_odd_members_leads_out(
    members: list[tarfile.TarInfo],
) -> None:
    unpack_somewhere(gzip.compress(tar_of(*members, contents=b"x"), 1))


@FUZZ
@given(data=st.data())
def test_no_damage_does_more_than_say_so(data: st.DataObject) -> None:
    tar = bytearray(
        tar_of(
            member("a/b", pax_headers={"comment": "x"}),
            member("n" * 120),
            member("l", tarfile.SYMTYPE, linkname="a/b"),
            contents=b"x" * 20,
        )
    )
    for _ in range(data.draw(st.integers(0, 4))):
        tar[data.draw(st.integers(0, len(tar) - 1))] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):
            _mend_checksums(tar)
    cut = data.draw(st.integers(0, len(tar)))
    packed = bytearray(gzip.compress(bytes(tar[: cut or None]), 1))
    if data.draw(st.booleans()):
        packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(0, 255))
    unpack_somewhere(bytes(packed))


def _mend_checksums(tar: bytearray) -> None:
    # Without this, nearly every changed header would stop at its checksum.
    for at in range(0, len(tar) - 511, 512):
        block = tar[at : at + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            tar[at + 148 : at + 156] = b"%06o\0 " % sum(block)


@FUZZ
@given(junk=st.binary(max_size=2000))
def test_no_junk_does_more_than_say_so(junk: bytes) -> None:
    unpack_somewhere(gzip.compress(junk, 1))
