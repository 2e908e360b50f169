"""Makes the image that sandboxes start from, out of a root file system on this machine, with no registry."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from olcore.errors import SandboxError

if TYPE_CHECKING:
    from ol_sandbox_docker.engine import Engine

Progress = Callable[[int], None]
"""Called with the number of bytes that have gone to the engine."""

_CHUNK = 1 << 20
_NOT_PYTHON = {"site-packages", "dist-packages", "test", "idlelib", "tkinter", "turtledemo", "__pycache__"}  # fmt: skip
_ALSO = (
    "/bin/sh",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/mime.types",
    "/etc/services",
    "/etc/protocols",
)
_NEEDED_LATE = ("libgcc_s.so.1", "libnss_dns.so.2", "libnss_files.so.2")
"""Libraries that glibc loads by name when they are needed, so that no program names them."""
_MADE = {
    "etc/passwd": "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


def import_folder(engine: Engine, root: Path, name: str, progress: Progress) -> str:
    """Import the root file system in *root* as the image *name*, and return the image's id.

    Raises:
        SandboxError: It cannot be read, or the engine refuses; *name* is as it was.
    """
    tar = ["tar", "--numeric-owner", "--one-file-system", "-C", str(root), "-c", "."]
    # A file takes all that tar may have to say; a pipe that nobody reads meanwhile would stop it.
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(tar, stdout=subprocess.PIPE, stderr=said) as packing,
    ):
        assert packing.stdout is not None  # noqa: S101 - it is a pipe
        image = engine.import_image(_chunks(packing.stdout, progress))
        if packing.wait() == 0:
            return _named(engine, image, name)
        engine.remove_image(image)
        said.seek(0)
        reason = said.read().decode(errors="replace").strip()
    raise SandboxError(f"cannot read {str(root)!r}: {reason}")


def import_host(engine: Engine, name: str, progress: Progress) -> str:
    """Import this machine's own Python, with what it needs and nothing else, as the image *name*; fails as the above."""
    reader, writer = os.pipe()
    packer = subprocess.Popen(
        [sys.executable, "-c", f"import {__name__} as image; image.pack_host({writer})"],
        pass_fds=(writer,),
    )
    os.close(writer)
    with packer, open(reader, "rb") as stream:  # noqa: PTH123 - a descriptor
        image = engine.import_image(_chunks(stream, progress))
    if packer.returncode == 0:
        return _named(engine, image, name)
    engine.remove_image(image)
    raise SandboxError("cannot pack this machine's Python; see above")


def _named(engine: Engine, image: str, name: str) -> str:
    """Give a whole image its name; half an archive never takes the place of an image that works."""
    try:
        before = engine.image(name)
        engine.tag(image, name)
    except SandboxError:
        engine.remove_image(image)
        raise
    if before is not None and before["Id"] != image:
        _remove_nameless(engine, before["Id"])
    return image


def _remove_nameless(engine: Engine, image: str) -> None:
    found = engine.image(image)
    # One that has another name is somebody's; and one that containers use is refused, and goes with `docker image prune`.
    if found is not None and not found["RepoTags"]:
        with suppress(SandboxError):
            engine.remove_image(image)


def pack_host(fd: int) -> None:
    """Write the tar archive for ``import_host`` to the descriptor *fd*."""
    interpreter = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    with open(fd, "wb") as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
        packed: set[str] = set()
        for name, text in _MADE.items():
            _add_text(tar, name, text)
        for path in host_files(interpreter):
            _add(tar, path, packed)
        if interpreter != Path("/usr/local/bin/python3"):
            link = tarfile.TarInfo("usr/local/bin/python3")
            link.type, link.linkname = tarfile.SYMTYPE, str(interpreter)
            tar.addfile(link)


def host_files(interpreter: Path) -> list[Path]:
    """Every file that the image of this machine's own Python holds.

    Args:
        interpreter: The program itself, no link.
    """
    library = Path(sysconfig.get_path("stdlib"))
    modules = [
        Path(folder) / file
        for folder, below, files in os.walk(library)
        if not _prune(below)
        for file in files
    ]
    extras = [Path(path) for path in _ALSO if Path(path).exists()]
    programs = [interpreter, Path("/bin/sh"), *(path for path in modules if ".so" in path.suffixes)]
    libraries = set(_libraries(programs))
    return [interpreter, *modules, *extras, *sorted(libraries | _late(libraries))]


def size_of(root: Path) -> int:
    """Add up the sizes of the files below *root*, to measure progress by."""
    total = 0
    for folder, _, files in os.walk(root):
        for file in files:
            with suppress(OSError):  # gone meanwhile
                total += (Path(folder) / file).lstat().st_size
    return total


def _chunks(stream: IO[bytes], progress: Progress) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
        yield chunk
        progress(len(chunk))


def _prune(folders: list[str]) -> bool:
    folders[:] = [name for name in folders if name not in _NOT_PYTHON]
    return False


def _libraries(programs: list[Path]) -> Iterator[Path]:
    said = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False).stdout
    for path in set(re.findall(r"(/\S+) \(0x", said)):
        yield Path(path)


def _late(libraries: set[Path]) -> set[Path]:
    beside = {library.parent for library in libraries}
    paths = {folder / name for folder in beside for name in _NEEDED_LATE}
    return {path for path in paths if path.exists()}


def _add(tar: tarfile.TarFile, path: Path, packed: set[str]) -> None:
    """Add what *path* leads to under its own name: an image needs no links, and its folders can all be entered."""
    name = str(path).lstrip("/")
    if name in packed:
        return
    packed.add(name)
    info = tarfile.TarInfo(name)
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        info.size, info.mtime = status.st_size, int(status.st_mtime)
        info.mode = 0o755 if status.st_mode & 0o111 else 0o644
        tar.addfile(info, file)


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(text.encode()), 0o644
    tar.addfile(info, io.BytesIO(text.encode()))
