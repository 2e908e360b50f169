"""Compiles the bytecode of a folder with the worker's interpreter, when the guest's is of the same kind.

Compiling runs none of the code, but reads it with a parser written in C: so it is done in a process of its own, with
a limit on its time and memory.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from olcore.interfaces import GuestInfo

_log = logging.getLogger(__name__)

TIMEOUT_S = 300.0
_MEMORY_BYTES = 2 << 30


def is_ours(guest: GuestInfo) -> bool:
    """Whether the worker's interpreter writes bytecode that the guest's can read."""
    feature = tuple(guest.python.split(".")[:2])
    ours = (str(sys.version_info.major), str(sys.version_info.minor))
    return guest.implementation == sys.implementation.name and feature == ours


async def compile_folder(folder: Path) -> None:
    """Compile every source below *folder*; one with bad syntax is left out, as its import would say."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", _PROGRAM, str(folder)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        _log.warning(
            "compiling %s took over %g s; it is imported without bytecode", folder, TIMEOUT_S
        )
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def leave(folder: Path) -> None:
    """Compile nothing: the guest's interpreter is another, and only it could."""
    _log.info("no bytecode for %s: the guest runs another Python than the worker", folder.name)


# compileall's own process pool would leave its children behind when the parent is killed.
_PROGRAM = f"""
import compileall, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY_BYTES}, {_MEMORY_BYTES}))
compileall.compile_dir(sys.argv[1], quiet=2, workers=1)
"""
