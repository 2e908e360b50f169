"""Attempts on processes outside of the sandbox."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import struct

from . import Event, attack
from .raw import syscall

PTRACE_ATTACH = 16
PTRACE_SEIZE = 0x4206
SECRET = re.compile(rb"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
"""What a secret of the suite looks like; it comes here as a hash, so that looking for it does not put it here."""


def _numbers() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


@attack("own only")
def see_other_processes(event: Event) -> str:
    """/proc shows its own processes, and few; they are counted, since forks of one zygote have one command line."""
    seen = []
    for pid in _numbers():
        with open(f"/proc/{pid}/cmdline") as file:
            seen.append(file.read())
    return "own only" if len(seen) <= 3 else f"saw {sorted(seen)}"


@attack("ESRCH", "EPERM")
def signal_the_worker(event: Event) -> None:
    os.kill(event["worker_pid"], signal.SIGKILL)


@attack("ESRCH", "EPERM")
def signal_another_instance(event: Event) -> None:
    os.kill(event["victim_pid"], signal.SIGKILL)


@attack("alive")
def signal_everyone(event: Event) -> str:
    """A kill of -1 reaches every process that one may signal; the suite looks whether its victim survived."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        os.kill(-1, signal.SIGUSR1)
    except ProcessLookupError:
        pass  # there is nobody else
    return "alive"


@attack("ESRCH", "EPERM", "ENOSYS")
def ptrace_another_instance(event: Event) -> None:
    syscall("ptrace", PTRACE_SEIZE, event["victim_pid"], 0, 0)


@attack("EPERM", "ESRCH", "EIO", "ENOSYS")
def ptrace_process_1(event: Event) -> None:
    """The first process of the sandbox, or, where the handler is that one, itself."""
    syscall("ptrace", PTRACE_ATTACH, 1, 0, 0)


@attack("ESRCH", "EPERM", "ENOSYS")
def read_memory_of_another_instance(event: Event) -> None:
    target = struct.pack("QQ", 0x1000, 8)
    syscall("process_vm_readv", event["victim_pid"], target, 1, target, 1, 0)


@attack("ENOENT", "EACCES", "ESRCH")
def open_memory_of_another_instance(event: Event) -> None:
    open(f"/proc/{event['victim_pid']}/mem", "rb").close()


@attack("ESRCH", "EPERM", "EINVAL", "ENOSYS")
def pidfd_of_the_worker(event: Event) -> None:
    syscall("pidfd_open", event["worker_pid"], 0)


@attack("ESRCH", "EPERM", "ENOSYS")
def compare_with_the_worker(event: Event) -> None:
    """The call tells whether two processes share things."""
    syscall("kcmp", os.getpid(), event["worker_pid"], 0, 0, 0)


@attack("nothing")
def read_environments(event: Event) -> str:
    """The worker's environment holds a secret, of which only the hash comes here."""
    for pid in _numbers():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if _holds_secret(file.read(), event):
                    return f"found in process {pid}"
        except OSError:
            continue
    return "nothing"


@attack("nothing")
def find_secrets_in_own_memory(event: Event) -> str:
    """Memory that was forked could hold what another handler was told: its environment and its events."""
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        for line in maps:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            try:
                memory.seek(start)
                data = memory.read(end - start)
            except (OSError, OverflowError):
                continue  # a guard page, or the kernel's own
            if _holds_secret(data, event):
                return f"found in {line.strip()}"
    return "nothing"


def _holds_secret(data: bytes, event: Event) -> bool:
    return any(
        hashlib.sha256(match.group()).hexdigest() in event["secret_hashes"]
        for match in SECRET.finditer(data)
    )


@attack("only what it needs")
def use_inherited_descriptors(event: Event) -> str:
    """Output, input from nowhere, and one socket: its own connection."""
    extra, sockets = [], 0
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
        if target.startswith("socket:"):
            sockets += 1
        elif target not in ("/dev/null", "/host/stdout", "/host/stderr"):
            extra.append(target)
    if sockets != 1:
        extra.append(f"{sockets} sockets")
    return f"also {extra}" if extra else "only what it needs"
