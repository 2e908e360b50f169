"""Tests of the system-call wrappers: each once, for real, in a forked child that may lose what it has."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from ol_sandbox_sock import linux

RETURN_ERRNO, RETURN_ALLOW = 0x00050000, 0x7FFF0000


def _in_child(body: Callable[[], None]) -> str:
    """Run *body* in a forked child, and return the traceback of what went wrong there."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            body()
            os._exit(0)
        except BaseException:  # noqa: BLE001 -- the parent shows it
            os.write(writer, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as report:
        said = report.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return said or ("" if status == 0 else f"exit status {status}")


def test_a_failure_names_call_errno_and_path() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        linux.umount2("/nonexistent/path", 0)
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == "/nonexistent/path"
    assert "umount2" in str(caught.value)


def test_close_range_closes_the_range_only() -> None:
    def body() -> None:
        low, high = os.dup2(0, 200), os.dup2(0, 201)
        linux.close_range(high, linux.LAST_FD)
        os.fstat(low)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(high)

    assert _in_child(body) == ""


def test_a_pidfd_carries_a_signal() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        pidfd = linux.pidfd_open(process.pid)
        linux.pidfd_send_signal(pidfd, signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            linux.pidfd_send_signal(pidfd, signal.SIGTERM)
        os.close(pidfd)


def test_a_filter_decides_about_system_calls() -> None:
    def body() -> None:
        instructions = [
            struct.pack("=HBBI", 0x20, 0, 0, 0),  # load the number
            struct.pack("=HBBI", 0x15, 0, 1, 39 if os.uname().machine == "x86_64" else 172),
            struct.pack("=HBBI", 0x06, 0, 0, RETURN_ERRNO | errno.ENODATA),  # getpid
            struct.pack("=HBBI", 0x06, 0, 0, RETURN_ALLOW),
        ]
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        linux.seccomp_load(b"".join(instructions))
        assert os.getpid() == -errno.ENODATA  # glibc takes it as it comes
        os.getppid()

    assert _in_child(body) == ""


def test_an_unknown_filter_is_refused() -> None:
    def body() -> None:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        with pytest.raises(OSError, match="prctl"):
            linux.seccomp_load(b"\xff" * 8)

    assert _in_child(body) == ""


@pytest.mark.kernel
def test_all_capabilities_can_be_dropped() -> None:
    def body() -> None:
        linux.drop_bounding_set()
        linux.setgroups()
        linux.setresgid(12345, 12345, 12345)
        linux.setresuid(12345, 12345, 12345)
        linux.clear_capabilities()
        lines = dict(
            line.split(":\t")
            for line in Path("/proc/self/status").read_text().splitlines()
            if "\t" in line
        )
        assert {lines[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        assert lines["Uid"].split() == ["12345"] * 4
        assert lines["Gid"].split() == ["12345"] * 4
        assert lines["Groups"].strip() == ""

    assert _in_child(body) == ""


@pytest.mark.kernel
def test_capabilities_go_at_once_for_root_too() -> None:
    def body() -> None:
        linux.drop_all_capabilities()
        with pytest.raises(PermissionError):
            linux.unshare(linux.CLONE_NEWUTS)
        with pytest.raises(PermissionError):
            linux.drop_bounding_set()

    assert _in_child(body) == ""


@pytest.mark.kernel
def test_a_detached_tree_is_attached_read_only(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "file").write_text("text")

    def body() -> None:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
        flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_RECURSIVE
        tree = linux.open_tree(linux.AT_FDCWD, source, flags)
        linux.mount_setattr(
            tree, "", linux.AT_EMPTY_PATH | linux.AT_RECURSIVE, linux.MOUNT_ATTR_RDONLY
        )
        linux.move_mount(tree, "", linux.AT_FDCWD, target, linux.MOVE_MOUNT_F_EMPTY_PATH)
        assert (target / "file").read_text() == "text"
        with pytest.raises(OSError, match="Read-only"):
            (target / "file").write_text("other")
        linux.umount2(target, linux.MNT_DETACH)
        assert list(target.iterdir()) == []

    assert _in_child(body) == ""


@pytest.mark.kernel
def test_a_file_system_is_made_without_a_place(tmp_path: Path) -> None:
    def body() -> None:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
        context = linux.fsopen("tmpfs", linux.FSOPEN_CLOEXEC)
        linux.fsconfig(context, linux.FSCONFIG_SET_STRING, "size", "65536", 0)
        linux.fsconfig(context, linux.FSCONFIG_CMD_CREATE, None, None, 0)
        mounted = linux.fsmount(context, linux.FSMOUNT_CLOEXEC, linux.MOUNT_ATTR_NOEXEC)
        linux.move_mount(mounted, "", linux.AT_FDCWD, tmp_path, linux.MOVE_MOUNT_F_EMPTY_PATH)
        with pytest.raises(OSError, match="No space"):
            (tmp_path / "large").write_bytes(bytes(1 << 20))
        # A pivot into it, with the old root put where the new one is, needs no folder for the old one.
        os.chdir(tmp_path)
        linux.pivot_root(".", ".")
        linux.umount2(".", linux.MNT_DETACH)
        assert [path.name for path in Path("/").iterdir()] == ["large"]

    assert _in_child(body) == ""


@pytest.mark.kernel
def test_namespaces_are_left_and_entered_again() -> None:
    def body() -> None:
        before = os.uname().nodename
        home = os.open("/proc/self/ns/uts", os.O_RDONLY)
        linux.unshare(linux.CLONE_NEWUTS)
        linux.sethostname("elsewhere")
        assert os.uname().nodename == "elsewhere"
        linux.setns(home, linux.CLONE_NEWUTS)
        assert os.uname().nodename == before

    assert _in_child(body) == ""


@pytest.mark.kernel
def test_a_network_namespace_is_set_up_with_ioctls() -> None:
    def body() -> None:
        linux.unshare(linux.CLONE_NEWNET)
        linux.interface_up("lo")
        subprocess.run(
            ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far"], check=True
        )
        linux.set_address("eth0", "100.72.0.5", 32)
        linux.interface_up("eth0")
        linux.add_neighbour("169.254.1.1", "02:6f:6c:00:00:01", "eth0")
        linux.add_default_route("169.254.1.1", "eth0")

        def ip(*words: str) -> str:
            return subprocess.run(
                ["ip", "-4", *words], check=True, capture_output=True, text=True
            ).stdout

        assert "127.0.0.1" in ip("address", "show", "up")
        assert " 100.72.0.5/32 " in ip("address", "show", "eth0")
        assert "default via 169.254.1.1 dev eth0" in ip("route")
        assert "02:6f:6c:00:00:01 PERMANENT" in ip("neighbour")

    assert _in_child(body) == ""


def test_it_stands_alone(tmp_path: Path) -> None:
    # Inside a sandbox it is a module by itself, in an interpreter without site-packages.
    source = Path(linux.__file__)
    (tmp_path / "linux.py").write_bytes(source.read_bytes())
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import linux; print(linux.CLONE_NEWNS)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], check=True, capture_output=True, text=True
    )
    assert done.stdout == "131072\n"
