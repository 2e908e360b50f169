"""The filter for a handler's system calls, compiled by the worker and loaded by the guest.

An allow list, about as wide as the default profile of container engines for a container without capabilities. A call
that is not on it fails in one of two ways: those that people know, and that a sandbox must not have, with EPERM; all
others with ENOSYS, so that a C library that tries a call newer than this list falls back to an older one. clone3 is such
a call on purpose: its flags are behind a pointer, where no filter can look, and glibc then uses clone. So is io_setup:
what it takes is counted for the whole machine (fs.aio-max-nr), and one handler could take it all.

The guest has the standard library only, so the worker compiles, with libseccomp, and hands over the bytes. libseccomp may be
older than a name below; such names are skipped, which is safe in an allow list.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

from ol_sandbox_sock import linux

if TYPE_CHECKING:
    import pyseccomp  # type: ignore[import-untyped]  # it has no types

_FILES = """
access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 fallocate
fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat
fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init
inotify_init1 inotify_rm_watch lchown lgetxattr link linkat listxattr listxattrat llistxattr lremovexattr lseek lsetxattr
lstat mkdir mkdirat mknod mknodat newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read
readahead readlink readlinkat readv removexattr removexattrat rename renameat renameat2 rmdir sendfile setxattr
setxattrat splice stat statfs statx symlink symlinkat sync sync_file_range syncfs tee truncate umask unlink unlinkat utime
utimensat utimes vmsplice write writev
"""
_MEMORY = """
brk madvise memfd_create mincore mlock mlock2 mlockall mmap mprotect mremap mseal msync munlock munlockall munmap
pkey_alloc pkey_free pkey_mprotect remap_file_pages
"""
_PROCESSES = """
arch_prctl capget capset execve execveat exit exit_group fork futex futex_requeue futex_wait futex_waitv futex_wake
get_robust_list getcpu getegid geteuid getgid getgroups getpgid getpgrp getpid getppid getpriority getresgid getresuid
getrlimit getrusage getsid gettid getuid ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset
landlock_restrict_self membarrier map_shadow_stack pause pidfd_open pidfd_send_signal prctl prlimit64 restart_syscall rseq
rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp
set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setpgid setpriority setregid setresgid
setresuid setreuid setrlimit setsid setuid sigaltstack sysinfo tgkill times tkill uname vfork wait4 waitid
"""
_TIME = """
alarm clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time timer_create timer_delete
timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime
"""
_EVENTS = """
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2
getrandom ioctl mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd pipe
pipe2 poll ppoll pselect6 select semctl semget semop semtimedop shmat shmctl shmdt shmget signalfd signalfd4
"""
_SOCKETS = """
accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg sendto
setsockopt shutdown
"""

ALLOWED = tuple(" ".join((_FILES, _MEMORY, _PROCESSES, _TIME, _EVENTS, _SOCKETS)).split())
"""Calls that pass whatever their arguments are; for ``ioctl``, see ``_prologue``."""

DENIED = (
    "acct",
    "add_key",
    "adjtimex",
    "bpf",
    "chroot",
    "clock_adjtime",
    "clock_settime",
    "delete_module",
    "fanotify_init",
    "fanotify_mark",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "modify_ldt",
    "mount",
    "mount_setattr",
    "move_mount",
    "name_to_handle_at",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pidfd_getfd",
    "pivot_root",
    "process_madvise",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "syslog",
    "umount2",
    "unshare",
    "userfaultfd",
    "vhangup",
)
"""Calls that fail with EPERM."""

_NAMESPACES = (
    linux.CLONE_NEWCGROUP,
    linux.CLONE_NEWIPC,
    linux.CLONE_NEWNET,
    linux.CLONE_NEWNS,
    linux.CLONE_NEWPID,
    linux.CLONE_NEWUSER,
    linux.CLONE_NEWUTS,
)
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_NETLINK_ROUTE = 0
_PERSONALITIES = (0x0, 0xFFFFFFFF)
"""Linux, and the question which one it is; others turn off address randomisation or make readable memory executable."""

_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_IOCTL = {"x86_64": 16, "aarch64": 29}

# enum scmp_filter_attr of seccomp.h; pyseccomp has no names for all of them.
_ACT_BADARCH, _CTL_OPTIMIZE, _BINARY_TREE = 2, 8, 2


def why_unusable() -> str | None:
    """Say why no filter can be compiled here."""
    try:
        import pyseccomp  # noqa: F401 -- importing it loads the library
    except (ImportError, RuntimeError) as error:
        return f"{error}; apt-get install libseccomp2, or set sock.seccomp to off"
    if os.uname().machine not in _IOCTL:
        return f"no system call filter for {os.uname().machine!r}; set sock.seccomp to off"
    return None


ZYGOTE = ("mount", "move_mount", "sethostname", "setns", "unshare")
"""What a package zygote needs beyond: it is the root of a user namespace, and makes the walls of the cells it forks."""


def compile_filter(*, for_zygote: bool = False) -> bytes:
    """Compile the filter for this machine: ``struct sock_filter`` items, for ``linux.seccomp_load``.

    Args:
        for_zygote: Whether for a package zygote, which runs code of strangers and forks cells.
    """
    import pyseccomp  # not at the top: it raises where libseccomp is missing, and why_unusable must be able to say so

    nowhere, denied = pyseccomp.ERRNO(errno.ENOSYS), pyseccomp.ERRNO(errno.EPERM)
    rules = pyseccomp.SyscallFilter(nowhere)
    # Only the native ABI is in the filter. Calls through the 32-bit ABI and x32, which number calls in other ways, are as
    # if the kernel had been built without them; the default would kill the thread.
    rules.set_attr(_ACT_BADARCH, nowhere)
    rules.set_attr(_CTL_OPTIMIZE, _BINARY_TREE)
    more = ZYGOTE if for_zygote else ()
    for name in (*ALLOWED, *more):
        _add(rules, pyseccomp.ALLOW, name)
    for name in DENIED:
        if name not in more:
            _add(rules, denied, name)
    _add_by_argument(rules, denied)
    with os.fdopen(os.memfd_create("seccomp", os.MFD_CLOEXEC), "w+b") as file:
        rules.export_bpf(file)
        file.seek(0)
        return _prologue() + file.read()


def _add(rules: pyseccomp.SyscallFilter, action: int, name: str, *arguments: pyseccomp.Arg) -> None:
    import pyseccomp

    # Negative: unknown to this libseccomp, or no call of this machine (arm64 has no open, only openat).
    number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
    if number >= 0:
        rules.add_rule_exactly(action, number, *arguments)


def _add_by_argument(rules: pyseccomp.SyscallFilter, denied: int) -> None:
    from pyseccomp import ALLOW, EQ, ERRNO, GT, MASKED_EQ, NE, Arg

    # The rules for one call must not overlap: libseccomp promises no order between them. What no rule fits is ENOSYS.
    _add(rules, ALLOW, "clone", Arg(0, MASKED_EQ, sum(_NAMESPACES), 0))
    for flag in _NAMESPACES:
        _add(rules, denied, "clone", Arg(0, MASKED_EQ, flag, flag))

    unsupported = ERRNO(errno.EAFNOSUPPORT)
    for family in range(_AF_NETLINK):
        is_allowed = family in {_AF_UNIX, _AF_INET, _AF_INET6}
        _add(rules, ALLOW if is_allowed else unsupported, "socket", Arg(0, EQ, family))
    _add(rules, unsupported, "socket", Arg(0, GT, _AF_NETLINK))
    # getifaddrs and so every "which interfaces are there" needs rtnetlink; the other netlink families are attack surface.
    _add(rules, ALLOW, "socket", Arg(0, EQ, _AF_NETLINK), Arg(2, EQ, _NETLINK_ROUTE))
    other = ERRNO(errno.EPROTONOSUPPORT)
    _add(rules, other, "socket", Arg(0, EQ, _AF_NETLINK), Arg(2, NE, _NETLINK_ROUTE))
    _add(rules, ALLOW, "socketpair", Arg(0, EQ, _AF_UNIX))

    for personality in _PERSONALITIES:
        _add(rules, ALLOW, "personality", Arg(0, EQ, personality))


def _prologue() -> bytes:
    """Refuse two commands of ioctl, ahead of libseccomp's instructions, which then decide about everything else.

    They put characters into a terminal's input, where the shell outside reads them. libseccomp compares all 64 bits of an
    argument and the kernel uses 32 of this one, so that a rule that allows "any but these" would allow them with a
    high bit set. Jumps are relative: instructions can be put in front.
    """
    load, equal, result = 0x20, 0x15, 0x06  # BPF_LD+W+ABS, BPF_JMP+JEQ+K, BPF_RET+K
    number, low_half_of_second_argument = 0, 24  # in struct seccomp_data, little endian
    instructions = (
        (load, 0, 0, number),
        (equal, 0, 4, _IOCTL[os.uname().machine]),
        (load, 0, 0, low_half_of_second_argument),
        (equal, 1, 0, _TIOCSTI),
        (equal, 0, 1, _TIOCLINUX),
        (result, 0, 0, 0x00050000 | errno.EPERM),  # SECCOMP_RET_ERRNO
    )
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
