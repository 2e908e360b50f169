"""Runs a command on another kernel: in a virtual machine whose file system is this machine's, writable in memory only.

    python plugins/sandbox_sock/tests/vm.py -- .venv/bin/python -m pytest -m kernel plugins/sandbox_sock

The machine boots Debian's kernel with cgroup v2 alone, as most distributions do today, whatever this machine has. It sees
this machine's root through 9p, read-only, below an overlay in memory, so that the interpreter and the packages are the same
and nothing is left behind. It has no network. The command runs in the current folder as root; its exit status is the script's.

Needs Debian or Ubuntu with qemu-system-x86 and seabios, and apt's lists; it boots in some seconds, emulated, and
--kvm makes it quicker where the processor may be used.
The kernel's package is unpacked below ``--cache``, never installed.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
QEMU = "qemu-system-x86_64"
STATUS = "olcore-vm-status="

INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /host /rw /new
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
for module in $($b cat /modules); do $b insmod /$module || echo "$module: not loaded"; done
$b mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=1048576,cache=loose host /host
$b mount -t tmpfs -o size=75% rw /rw
$b mkdir /rw/up /rw/work
$b mount -t overlay -o lowerdir=/host,upperdir=/rw/up,workdir=/rw/work overlay /new
$b cp /command /new/command
for folder in proc sys dev tmp run; do $b mkdir -p /new/$folder; done
here=$($b cat /here)
$b mkdir /here.d && $b mount --bind "/new$here" /here.d
$b mount -t tmpfs -o mode=1777 tmp /new/tmp
case $here in /tmp/*) $b mkdir -p "/new$here" && $b mount --move /here.d "/new$here";; esac
$b mount -t tmpfs run /new/run
$b mkdir /new/run/kernel
$b mount --bind "/host/$($b cat /kernel)" /new/run/kernel
$b mount -t sysfs sys /new/sys
$b mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
$b mount --move /dev /new/dev
$b mkdir -p /new/dev/shm /new/dev/pts
$b mount -t tmpfs -o mode=1777 shm /new/dev/shm
$b mount -t devpts pts /new/dev/pts
$b mount --move /proc /new/proc
exec $b switch_root /new /bin/sh /command
"""

# A checkout below /tmp is kept, though the rest of /tmp is empty. switch_root wants a root that no other mount is on, and SOCK pivots: both work on the overlay, not on the initramfs.
COMMAND = """
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root {environment}
mkdir -p /lib/modules && ln -sfn /run/kernel/lib/modules/{release} /lib/modules/{release}
[ -e /sbin/modprobe ] || ln -s /run/kernel/bin/busybox /sbin/modprobe
ip link set lo up
cd {folder} && {command}
echo "{status}$?"
sync
echo o > /proc/sysrq-trigger
sleep 60
"""


def fetch_kernel(cache: Path) -> Path:
    """Download and unpack Debian's kernel and a static busybox, once."""
    root = cache / "root"
    if not root.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        depends = subprocess.run(
            ["apt-cache", "depends", "linux-image-amd64"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        image = re.search(r"linux-image-\S+", depends.partition("Depends:")[2])
        assert image, depends
        subprocess.run(
            ["apt-get", "-q", "download", image[0], "busybox-static"], check=True, cwd=cache
        )
        for package in cache.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, root], check=True)
        subprocess.run([root / "bin/busybox", "depmod", "-b", root, _release(root)], check=True)
    return root


def _release(root: Path) -> str:
    return next((root / "lib/modules").iterdir()).name


def _with_dependencies(root: Path) -> list[Path]:
    """List the files of MODULES and of what they need, in the order in which to load them."""
    folder = root / "lib/modules" / _release(root)
    needs = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        name, _, rest = line.partition(":")
        needs[Path(name).name.partition(".")[0]] = [name, *rest.split()]
    ordered: dict[Path, None] = {}
    for module in MODULES:
        for name in reversed(needs.get(module, [])):
            ordered[folder / name.removeprefix(f"lib/modules/{folder.name}/")] = None
    return list(ordered)


def make_initramfs(root: Path, command: str, target: Path) -> None:
    """Make the first file system: enough to find the real one and to start the command there."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        (tree / "bin").mkdir()
        (tree / "bin/busybox").write_bytes((root / "bin/busybox").read_bytes())
        (tree / "bin/busybox").chmod(0o755)
        modules = _with_dependencies(root)
        for module in modules:
            (tree / module.name).write_bytes(module.read_bytes())
        (tree / "modules").write_text("\n".join(module.name for module in modules))
        (tree / "kernel").write_text(str(root))
        (tree / "command").write_text(command)
        (tree / "here").write_text(str(Path.cwd()))
        (tree / "init").write_text(INIT)
        (tree / "init").chmod(0o755)
        names = "\n".join(str(path.relative_to(tree)) for path in tree.rglob("*"))
        with target.open("wb") as archive:
            subprocess.run(
                [root / "bin/busybox", "cpio", "-o", "-H", "newc"],
                input=names.encode(),
                stdout=archive,
                stderr=subprocess.DEVNULL,
                cwd=tree,
                check=True,
            )


def run(root: Path, command: list[str], memory_mb: int, *, has_kvm: bool) -> int:
    """Boot, show what the machine says, and return the command's exit status."""
    release = _release(root)
    script = COMMAND.format(
        environment="OLCORE_REQUIRE_KERNEL=1 TERM=dumb",
        release=release,
        folder=shlex.quote(str(Path.cwd())),
        command=shlex.join(command),
        status=STATUS,
    )
    with tempfile.TemporaryDirectory() as folder:
        initramfs = Path(folder) / "initramfs"
        make_initramfs(root, script, initramfs)
        # Without asking it emulates: where KVM is itself inside a virtual machine, it may hang or fail.
        accelerator = (
            ("-accel", "kvm", "-cpu", "host") if has_kvm else ("-accel", "tcg", "-cpu", "max")
        )
        words = [
            *(QEMU, "-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio", *accelerator),
            *("-smp", "2", "-m", str(memory_mb)),
            *("-kernel", str(root / "boot" / f"vmlinuz-{release}"), "-initrd", str(initramfs)),
            *("-append", "console=ttyS0 loglevel=1 panic=-1 rdinit=/init cgroup_no_v1=all"),
            *(
                "-virtfs",
                "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
            ),
        ]
        with subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as machine:
            assert machine.stdout
            status = 1
            for line in machine.stdout:
                if STATUS in line:
                    status = int(line.partition(STATUS)[2])
                else:
                    sys.stdout.write(line)
                    sys.stdout.flush()
    return status


def main() -> int:
    """Read the command line, and do it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "olcore-vm")
    parser.add_argument("--kvm", action="store_true", help="use /dev/kvm")
    parser.add_argument("--memory-mb", type=int, default=3072)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    return run(
        fetch_kernel(arguments.cache.resolve()),
        arguments.command,
        arguments.memory_mb,
        has_kvm=arguments.kvm,
    )


if __name__ == "__main__":
    sys.exit(main())
