"""Tests of the system-call filter: what programs need works under it, and what a sandbox must not have fails."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pyseccomp  # type: ignore[import-untyped]  # it has no types
import pytest

from ol_sandbox_sock import linux, seccomp

LOAD = f"""
import sys
sys.path.insert(0, {str(Path(linux.__file__).parent)!r})
import linux
del sys.path[0]
linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
with open(sys.argv[1], 'rb') as file:
    linux.seccomp_load(file.read())
"""
CALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(*arguments):
    result = libc.syscall(*map(ctypes.c_ulong, arguments))
    return 0 if result >= 0 else ctypes.get_errno()
"""


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seccomp") / "filter"
    path.write_bytes(seccomp.compile_filter())
    return path


def _filtered(program: Path, code: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LOAD + code, str(program)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _number(name: str) -> int:
    return int(pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name))


def test_the_filter_is_whole_instructions() -> None:
    program = seccomp.compile_filter()
    assert len(program) % 8 == 0
    assert len(program) // 8 < 4096  # BPF_MAXINSNS


def test_no_name_is_allowed_and_denied() -> None:
    special = {"clone", "clone3", "socket", "socketpair", "personality"}
    assert not set(seccomp.ALLOWED) & set(seccomp.DENIED)
    assert not special & (set(seccomp.ALLOWED) | set(seccomp.DENIED))
    assert len(set(seccomp.ALLOWED)) == len(seccomp.ALLOWED)


WORKS = {
    "threads": """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    print(sum(pool.map(lambda n: n * n, range(100))) == 328350)
""",
    "subprocess": """
import subprocess
print(subprocess.run(['sh', '-c', 'echo a | tr a b'], capture_output=True, text=True).stdout == 'b\\n')
""",
    "a child's own Python": """
import subprocess
print(subprocess.run([sys.executable, '-c', 'print(1)'], capture_output=True).stdout == b'1\\n')
""",
    "sockets": """
import socket, threading
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname())
other = server.accept()[0]
client.sendall(b'x')
pair = socket.socketpair()
socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()
print(other.recv(1) == b'x', [name for _, name in socket.if_nameindex()][0] == 'lo')
""",
    "asyncio": """
import asyncio
async def main():
    process = await asyncio.create_subprocess_exec('cat', stdin=-1, stdout=-1)
    out, _ = await process.communicate(b'x')
    server = await asyncio.start_server(lambda r, w: w.close(), '127.0.0.1', 0)
    await asyncio.open_connection(*server.sockets[0].getsockname())
    return out, await asyncio.to_thread(lambda: 1)
print(asyncio.run(main()) == (b'x', 1))
""",
    "multiprocessing": """
import multiprocessing
from multiprocessing.shared_memory import SharedMemory
with multiprocessing.get_context('fork').Pool(2) as pool:
    print(pool.map(abs, [-1, -2]) == [1, 2])
block = SharedMemory(create=True, size=100)
block.close()
block.unlink()
""",
    "files": """
import os, shutil, tempfile, mmap, fcntl, sqlite3, select, signal
with tempfile.TemporaryDirectory() as folder:
    path = folder + '/file'
    open(path, 'w').write('text')
    os.link(path, path + '1'); os.symlink(path, path + '2'); os.chmod(path, 0o600); os.utime(path)
    os.mkfifo(folder + '/fifo'); os.rename(path + '1', path + '3'); shutil.copy(path, path + '4')
    os.sendfile(os.open(path + '5', os.O_RDWR | os.O_CREAT), os.open(path, os.O_RDONLY), 0, 4)
    with open(path, 'r+b') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        mmap.mmap(file.fileno(), 0).close()
        os.posix_fallocate(file.fileno(), 0, 100)
    database = sqlite3.connect(folder + '/db')
    database.execute('create table t (a)')
    database.commit()
    database.close()
    signal.setitimer(signal.ITIMER_REAL, 100)
    select.epoll().close()
    os.eventfd(0)
print(os.getloadavg() is not None, os.sched_getaffinity(0) != set(), os.getrandom(4) is not None)
""",
    "signals and waiting": """
import os, signal
pid = os.fork()
if not pid:
    signal.pause()
pidfd = os.pidfd_open(pid)
signal.pidfd_send_signal(pidfd, signal.SIGTERM)
print(os.waitid(os.P_PIDFD, pidfd, os.WEXITED).si_status == signal.SIGTERM)
""",
    "a second filter": "linux.seccomp_load(open(sys.argv[1], 'rb').read()); print(True)",
}


@pytest.mark.parametrize("what", WORKS)
def test_what_programs_need_works(program: Path, what: str, tmp_path: Path) -> None:
    said = _filtered(program, WORKS[what], tmp_path).split()
    assert said
    assert set(said) == {"True"}


@pytest.mark.parametrize("name", [name for name in seccomp.DENIED if _number(name) >= 0])
def test_a_denied_call_is_not_permitted(program: Path, name: str) -> None:
    said = _filtered(program, f"{CALL}\nprint(call({_number(name)}, 0, 0, 0, 0, 0, 0))")
    assert int(said) == errno.EPERM


NAMESPACES = sum(seccomp._NAMESPACES)


@pytest.mark.parametrize(
    ("what", "call", "expected"),
    [
        ("clone3", f"{_number('clone3')}, 0, 0", errno.ENOSYS),
        ("a call of the future", "5000", errno.ENOSYS),
        (
            "clone into a user namespace",
            f"{_number('clone')}, {linux.CLONE_NEWUSER} | 17",
            errno.EPERM,
        ),
        ("clone into all", f"{_number('clone')}, {NAMESPACES} | 17", errno.EPERM),
        ("vsock", f"{_number('socket')}, 40, 1, 0", errno.EAFNOSUPPORT),
        ("packet sockets", f"{_number('socket')}, 17, 3, 0", errno.EAFNOSUPPORT),
        ("crypto sockets", f"{_number('socket')}, 38, 5, 0", errno.EAFNOSUPPORT),
        ("bluetooth", f"{_number('socket')}, 31, 3, 0", errno.EAFNOSUPPORT),
        ("appletalk", f"{_number('socket')}, 5, 2, 0", errno.EAFNOSUPPORT),
        (
            "a family with a high bit",
            f"{_number('socket')}, (1 << 32) | 17, 3, 0",
            errno.EAFNOSUPPORT,
        ),
        ("netfilter's netlink", f"{_number('socket')}, 16, 3, 12", errno.EPROTONOSUPPORT),
        ("audit's netlink", f"{_number('socket')}, 16, 3, 9", errno.EPROTONOSUPPORT),
        ("no address randomisation", f"{_number('personality')}, 0x40000", errno.ENOSYS),
        ("the personality asked for", f"{_number('personality')}, 0xFFFFFFFF", 0),
        ("a key press", f"{_number('ioctl')}, 0, 0x5412, 0", errno.EPERM),
        (
            "a key press with a high bit",
            f"{_number('ioctl')}, 0, (1 << 32) | 0x5412, 0",
            errno.EPERM,
        ),
        ("a console selection", f"{_number('ioctl')}, 0, 0x541C, 0", errno.EPERM),
        ("another ioctl", f"{_number('ioctl')}, 9999, 0x5413, 0", errno.EBADF),
    ],
)
def test_arguments_decide(program: Path, what: str, call: str, expected: int) -> None:
    assert int(_filtered(program, f"{CALL}\nprint(call({call}))")) == expected


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 is an ABI of x86-64")
def test_x32_calls_do_not_exist(program: Path) -> None:
    said = _filtered(program, f"{CALL}\nprint(call(0x40000000 | {_number('getpid')}))")
    assert int(said) == errno.ENOSYS


def test_this_machine_is_usable() -> None:
    assert seccomp.why_unusable() is None
