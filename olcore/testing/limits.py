"""The contract of a sandbox's limits as a test class: the kernel holds them, and what is over them is told truly."""

from __future__ import annotations

import pytest

from olcore.interfaces import DeathCause, Limits
from olcore.testing.rendezvous import HungUpError, Rig
from olcore.testing.sandbox import ECHO, SandboxFixtures

_EATER = """
kept = []
def handler(event):
    while True:
        kept.append(bytearray(b"x") * (4 << 20))
"""

_EATING_CHILD = """
import os, signal
def handler(event):
    child = os.fork()
    if child == 0:
        kept = []
        while True:
            kept.append(bytearray(b"x") * (4 << 20))
    _, status = os.waitpid(child, 0)
    return signal.Signals(os.WTERMSIG(status)).name
"""

_FORKER = """
import os
def handler(event):
    reader, writer = os.pipe()
    children = []
    try:
        for _ in range(event):
            child = os.fork()
            if child == 0:
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
            children.append(child)
    except BlockingIOError:
        pass
    finally:
        os.close(writer)
        os.close(reader)
        for child in children:
            os.waitpid(child, 0)
    return len(children)
"""

_WRITER = """
import errno, os
def handler(event):
    path, size_mb = event
    written = 0
    try:
        with open(path, "wb", 0) as file:
            while written < size_mb:
                file.write(bytes(1 << 20))
                written += 1
    except OSError as error:
        return errno.errorcode[error.errno]
    finally:
        os.unlink(path)
    return written
"""

_BURNER = """
import time
def handler(event):
    until = time.monotonic() + event
    while time.monotonic() < until:
        pass
    return time.process_time()
"""


class LimitsContract(SandboxFixtures):
    """What the core promises to users of ``limits``, whatever the backend."""

    bounds_scratch = True
    """Whether ``scratch_mb`` is the kernel's bound."""

    async def test_over_its_memory_it_dies_and_says_so(self, rig: Rig) -> None:
        instance = await rig.run(_EATER, limits=Limits(memory_mb=96))
        with pytest.raises(HungUpError):
            await instance.call()
        death = await instance.wait()
        assert death.cause is DeathCause.OUT_OF_MEMORY
        assert "96 MiB" in str(death)

    async def test_its_neighbour_does_not_notice(self, rig: Rig) -> None:
        neighbour = await rig.run(ECHO, limits=Limits(memory_mb=96))
        instance = await rig.run(_EATER, limits=Limits(memory_mb=96))
        with pytest.raises(HungUpError):
            await instance.call()
        assert await neighbour.call("well") == "well"

    async def test_within_its_memory_it_lives(self, rig: Rig) -> None:
        instance = await rig.run(
            "def handler(event):\n    return len(bytearray(b'x') * (event << 20))\n",
            limits=Limits(memory_mb=256),
        )
        assert await instance.call(128) == 128 << 20

    async def test_a_child_over_the_memory_does_not_take_the_others_along(self, rig: Rig) -> None:
        instance = await rig.run(_EATING_CHILD, limits=Limits(memory_mb=96))
        assert await instance.call() == "SIGKILL"
        assert await instance.call() == "SIGKILL"

    async def test_processes_are_bounded_and_it_goes_on(self, rig: Rig) -> None:
        instance = await rig.run(_FORKER, limits=Limits(max_processes=16))
        assert 8 <= await instance.call(64) < 16
        assert await instance.call(4) == 4

    async def test_the_scratch_folder_is_bounded_and_it_goes_on(self, rig: Rig) -> None:
        if not self.bounds_scratch:
            pytest.skip("this backend cannot bound the scratch folder")
        instance = await rig.run(_WRITER, limits=Limits(scratch_mb=16))
        assert await instance.call(["/host/flood", 32]) in {"ENOSPC", "EDQUOT"}
        assert await instance.call(["/host/file", 8]) == 8

    @pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])  # noqa: S108 - inside
    async def test_temporary_folders_are_bounded(self, folder: str, rig: Rig) -> None:
        instance = await rig.run(_WRITER, limits=Limits(tmp_mb=16))
        assert await instance.call([f"{folder}/flood", 32]) == "ENOSPC"
        assert await instance.call([f"{folder}/file", 8]) == 8

    async def test_what_it_writes_counts_as_its_memory(self, rig: Rig) -> None:
        instance = await rig.run(_WRITER, limits=Limits(memory_mb=64, tmp_mb=256))
        with pytest.raises(HungUpError):
            await instance.call(["/tmp/flood", 128])  # noqa: S108 - inside
        assert (await instance.wait()).cause is DeathCause.OUT_OF_MEMORY

    async def test_its_share_of_the_processor_is_bounded(self, rig: Rig) -> None:
        slow = await rig.run(_BURNER, limits=Limits(cpu_percent=20))
        before = (await slow.sandbox.usage()).cpu_s
        await slow.call(2)
        assert (await slow.sandbox.usage()).cpu_s - before < 1.2
