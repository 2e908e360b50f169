"""Attempts on the kernel and on what the whole machine shares."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios

from . import Event, attack
from .raw import syscall

DENIED = ("EPERM", "ENOSYS")


@attack(*DENIED)
def read_the_kernel_log(event: Event) -> None:
    syscall("syslog", 3, bytes(4096), 4096)


@attack(*DENIED)
def clear_the_kernel_log(event: Event) -> None:
    syscall("syslog", 5, None, 0)


@attack("ENOENT", "EACCES", "EPERM")
def open_kmsg(event: Event) -> None:
    os.close(os.open("/dev/kmsg", os.O_RDONLY))


@attack("ENOENT", "EACCES", "EPERM", "empty")
def read_proc_kmsg(event: Event) -> str:
    fd = os.open("/proc/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    return "empty" if not os.read(fd, 1) else "read"


@attack("ENOENT", "EACCES", "EPERM")
def open_physical_memory(event: Event) -> None:
    os.close(os.open("/dev/mem", os.O_RDWR))


@attack("ENOENT", "EACCES", "EPERM", "empty")
def read_kcore(event: Event) -> str:
    with open("/proc/kcore", "rb") as file:
        return "read" if file.read(64) else "empty"


@attack("ENOENT", "EACCES", "EPERM", "EROFS")
def press_sysrq(event: Event) -> None:
    """The key h prints a help text into the kernel log."""
    with open("/proc/sysrq-trigger", "w") as file:
        file.write("h")


@attack("EACCES", "EPERM", "EROFS", "ENOENT")
def set_a_sysctl(event: Event) -> None:
    with open("/proc/sys/kernel/core_pattern", "r+") as file:
        file.write("|/tmp/x")


@attack("EACCES", "EPERM", "EROFS", "ENOENT")
def set_a_sysctl_of_the_network(event: Event) -> None:
    with open("/proc/sys/net/ipv4/ip_forward", "r+") as file:
        file.write("1")


@attack("EACCES", "EPERM", "EROFS", "ENOENT")
def raise_the_limit_of_namespaces(event: Event) -> None:
    with open("/proc/sys/user/max_user_namespaces", "r+") as file:
        file.write("1000")


@attack("EACCES", "EPERM", "EROFS", "ENOENT", "nothing to write")
def write_to_sysfs(event: Event) -> str:
    """Any file below /sys that opens for writing."""
    wanted = ("/sys/kernel/uevent_helper", "/sys/power/state", "/sys/kernel/mm/ksm/run")
    for path in filter(os.path.exists, wanted):
        os.close(os.open(path, os.O_WRONLY))
        return f"opened {path}"
    return "nothing to write"


@attack("EACCES", "EPERM", "EROFS", "ENOENT", "no cgroup files")
def leave_the_cgroup(event: Event) -> str:
    """Write this process to every cgroup.procs in sight."""
    for folder, _, files in os.walk("/sys/fs/cgroup"):
        if "cgroup.procs" in files:
            with open(f"{folder}/cgroup.procs", "w") as file:
                file.write(str(os.getpid()))
            return f"wrote {folder}"
    return "no cgroup files"


@attack(*DENIED)
def load_a_kernel(event: Event) -> None:
    syscall("kexec_load", 0, 0, None, 0)


@attack(*DENIED)
def load_a_module(event: Event) -> None:
    syscall("init_module", b"x", 1, b"")


@attack(*DENIED, "EBADF")
def load_a_module_from_a_file(event: Event) -> None:
    fd = os.open("/proc/self/exe", os.O_RDONLY)
    syscall("finit_module", fd, b"", 0)


@attack(*DENIED)
def remove_a_module(event: Event) -> None:
    syscall("delete_module", b"ol_no_such_module", 0)


@attack(*DENIED)
def reach_the_ports_of_the_machine(event: Event) -> None:
    syscall("iopl", 3)


@attack(*DENIED)
def reach_one_port_of_the_machine(event: Event) -> None:
    syscall("ioperm", 0x80, 1, 1)


@attack(*DENIED, "EACCES")
def count_events_of_the_processor(event: Event) -> None:
    """Kernel and all: a channel to others, and a large surface."""
    attributes = struct.pack("=IIQ", 1, 128, 0).ljust(128, b"\0")
    syscall("perf_event_open", attributes, 0, -1, -1, 0)


@attack(*DENIED)
def handle_page_faults(event: Event) -> None:
    syscall("userfaultfd", 0)


@attack(*DENIED)
def set_up_an_io_ring(event: Event) -> None:
    syscall("io_uring_setup", 1, bytes(120))


@attack(*DENIED)
def watch_the_file_system(event: Event) -> None:
    """A content-class fanotify group reaches other mounts' files."""
    syscall("fanotify_init", 4, 0)


@attack(*DENIED)
def choose_an_old_personality(event: Event) -> None:
    """READ_IMPLIES_EXEC and no randomisation make exploits easier."""
    syscall("personality", 0x0400000 | 0x0040000)


@attack(*DENIED)
def reboot(event: Event) -> None:
    """Only asks to disable ctrl-alt-delete, in case it works."""
    syscall("reboot", 0xFEE1DEAD, 672274793, 0, None)


@attack(*DENIED, "ENOENT")
def swap_on(event: Event) -> None:
    syscall("swapon", b"/tmp/ol-no-such-file", 0)


@attack(*DENIED, "ENOENT")
def swap_off(event: Event) -> None:
    syscall("swapoff", b"/tmp/ol-no-such-file")


@attack(*DENIED)
def set_the_clock(event: Event) -> None:
    syscall("clock_settime", 0, struct.pack("=qq", 1_000_000_000, 0))


@attack(*DENIED)
def set_the_time_of_day(event: Event) -> None:
    syscall("settimeofday", struct.pack("=qq", 1_000_000_000, 0), None)


@attack(*DENIED)
def adjust_the_clock(event: Event) -> None:
    syscall("clock_adjtime", 0, struct.pack("=I", 0x4000).ljust(208, b"\0"))


@attack("EPERM")
def set_the_host_name(event: Event) -> None:
    syscall("sethostname", b"attacked", 8)


@attack("EPERM")
def set_the_domain_name(event: Event) -> None:
    syscall("setdomainname", b"attacked", 8)


@attack(*DENIED)
def keep_accounts(event: Event) -> None:
    syscall("acct", None)


@attack(*DENIED, "ENOENT", "ENOTBLK", "EINVAL", "ENODEV")
def set_a_quota(event: Event) -> None:
    """Q_QUOTAOFF of user quotas."""
    syscall("quotactl", 0x80000300 - 0x100000000, b"/dev/ol-no-such-device", 0, None)


@attack(*DENIED)
def use_a_call_that_is_gone(event: Event) -> None:
    syscall("nfsservctl", 0, None, None)


@attack(*DENIED, "ENOENT")
def use_a_library_as_of_old(event: Event) -> None:
    syscall("uselib", b"/tmp/ol-no-such-file")


@attack(*DENIED)
def hang_up_the_terminal(event: Event) -> None:
    syscall("vhangup")


@attack(*DENIED)
def reach_files_by_handle(event: Event) -> None:
    """A handle needs no path, so it reaches what no path inside leads to."""
    handle = struct.pack("=Ii", 8, 1) + struct.pack("=II", 2, 0)
    syscall("open_by_handle_at", os.open("/", os.O_RDONLY), handle, 0)


@attack("no terminal", "ENXIO", "ENOENT", "EACCES")
def type_into_the_terminal(event: Event) -> str:
    """TIOCSTI puts characters into the input of who watches the worker."""
    for fd in (0, 1, 2):
        try:
            fcntl.ioctl(fd, termios.TIOCSTI, b"x")
        except OSError:
            continue
        return f"typed into descriptor {fd}"
    os.close(os.open("/dev/tty", os.O_RDWR))
    return "opened the terminal"


@attack("EPERM", "EACCES", "EPROTONOSUPPORT", "EAFNOSUPPORT")
def open_a_raw_socket(event: Event) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP).close()


@attack("EPERM", "EACCES", "EAFNOSUPPORT")
def open_a_packet_socket(event: Event) -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()


@attack("EPERM", "EACCES", "EAFNOSUPPORT", "EPROTONOSUPPORT", "EOPNOTSUPP")
def change_the_network_set_up(event: Event) -> None:
    """SIOCSIFFLAGS on the loopback: take it down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", b"lo", 0))


@attack("EPERM", "EACCES", "EAFNOSUPPORT", "ENOSYS")
def reach_the_host_through_vsock(event: Event) -> None:
    """A vsock would lead to the machine's own hypervisor, whatever the network namespace."""
    socket.socket(40, socket.SOCK_STREAM).close()
