"""Building what has no wheel: off unless the operator allows it, and never as root."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from olcore.errors import PackagesError
from olcore.handlers.packages import Packages, unprivileged
from olcore.testing.wheels import WheelFolder

Make = Callable[..., Packages]
Code = Callable[..., Path]

# Builds without any requirement, and puts down who it was and what it could do.
BACKEND = """
import os, subprocess, zipfile
def can(what):
    try:
        what()
    except OSError:
        return False
    return True
def build_wheel(folder, config_settings=None, metadata_directory=None):
    facts = {
        "uid": os.getuid(),
        "root": can(lambda: os.setuid(0)),
        "shadow": can(lambda: open("/etc/shadow")),
        "secret": os.environ.get("WORKER_SECRET"),
        "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit())[-1] < 1000,
    }
    subprocess.Popen(["sleep", "600"], start_new_session=True, stdin=-3, stdout=-3, stderr=-3)
    name = "gamma-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as out:
        out.writestr("gamma.py", f"FACTS = {facts!r}")
        out.writestr("gamma-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: gamma\\nVersion: 1.0\\n")
        out.writestr("gamma-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        out.writestr("gamma-1.0.dist-info/RECORD", "gamma.py,,\\n")
    return name
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "gamma"
version = "1.0"
"""


@pytest.fixture
def source(index: WheelFolder) -> None:
    files = {
        "PKG-INFO": "Metadata-Version: 2.1\nName: gamma\nVersion: 1.0\n",
        "pyproject.toml": PROJECT,
        "backend.py": BACKEND,
    }
    with tarfile.open(index.folder / "gamma-1.0.tar.gz", "w:gz") as bundle:
        for name, text in files.items():
            member = tarfile.TarInfo(f"gamma-1.0/{name}")
            member.size = len(text)
            bundle.addfile(member, io.BytesIO(text.encode()))


async def test_nothing_is_built_unless_it_is_allowed(
    make_packages: Make, code: Code, source: None
) -> None:
    with pytest.raises(PackagesError, match="gamma"):
        await make_packages().prepare(code("gamma"))


@pytest.mark.kernel
async def test_a_build_runs_as_nobody_in_walls_of_its_own(
    make_packages: Make, code: Code, source: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_SECRET", "hunter2")
    packages = make_packages(
        allow_source_builds=True, build_environment={"PATH": os.environ["PATH"]}
    )
    (wheel,) = (await packages.prepare(code("gamma"))).wheels
    facts: dict[str, object] = {}
    module = tmp_path / "packages" / wheel.folder / "gamma.py"
    exec(module.read_text(), facts)
    assert facts["FACTS"] == {
        "uid": unprivileged.NOBODY,
        "root": False,
        "shadow": False,
        "secret": None,
        "processes": True,
    }
    assert module.stat().st_uid == 0


@pytest.mark.kernel
async def test_what_has_a_wheel_is_not_built(
    make_packages: Make, code: Code, index: WheelFolder, source: None, tmp_path: Path
) -> None:
    index.add("gamma", "0.9", {"gamma.py": "FACTS = None\n"})
    packages = make_packages(allow_source_builds=True)
    (wheel,) = (await packages.prepare(code("gamma"))).wheels
    assert wheel.folder == "gamma-0.9-py3-none-any"


def test_a_link_in_what_was_built_is_refused(tmp_path: Path) -> None:
    made = tmp_path / "made"
    (made / "pkg").mkdir(parents=True)
    (made / "pkg" / "fine.py").write_text("")
    unprivileged.copy_result(made, tmp_path / "one")
    assert (tmp_path / "one" / "pkg" / "fine.py").is_file()
    (made / "pkg" / "link.py").symlink_to("/etc/shadow")
    with pytest.raises(PackagesError, match=r"link\.py"):
        unprivileged.copy_result(made, tmp_path / "two")
