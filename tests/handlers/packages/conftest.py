"""An index on disk, and packages installed from it."""

from __future__ import annotations

import asyncio
import compileall
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from olcore.handlers.packages import PackageOptions, Packages
from olcore.handlers.packages.store import CompileBytecode
from olcore.interfaces import GuestInfo
from olcore.testing.wheels import THIS_PYTHON, WheelFolder


@pytest.fixture(autouse=True)
def _own_uv_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))


@pytest.fixture
def index(tmp_path: Path) -> WheelFolder:
    index = WheelFolder(tmp_path / "wheels")
    index.add("alpha", "1.0", {"alpha/__init__.py": "import beta\n"}, requires=["beta>=1"])
    index.add("beta", "1.2", {"beta.py": "version = '1.2'\n"})
    index.add("beta", "2.0", {"beta.py": "version = '2.0'\n"})
    return index


@pytest.fixture
def code(tmp_path: Path) -> Callable[..., Path]:
    """Make a handler's folder as the code cache has it."""

    def make(text: str, file: str = "packages.txt", handler: str = "greet") -> Path:
        folder = tmp_path / "code" / handler / "1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lambda_func.py").write_text("def handler(event): return event\n")
        (folder / file).write_text(text)
        return folder

    return make


async def compile_here(folder: Path) -> None:
    """Compile with the tests' own Python, which stands for the guest's."""
    await asyncio.to_thread(compileall.compile_dir, folder, quiet=2)


@pytest.fixture
async def make_packages(
    tmp_path: Path, index: WheelFolder
) -> AsyncIterator[Callable[..., Packages]]:
    """Make ``Packages`` over one folder, offline, from the index."""
    made = []

    def make(
        guest: GuestInfo = THIS_PYTHON,
        compile_bytecode: CompileBytecode = compile_here,
        **options: object,
    ) -> Packages:
        settings: dict[str, object] = {"offline": True, "find_links": str(index.folder)}
        settings.update(options)
        one = Packages(
            packages_dir=tmp_path / "packages",
            lock_dir=tmp_path / "locks",
            guest=guest,
            options=PackageOptions(**settings),  # type: ignore[arg-type]
            compile_bytecode=compile_bytecode,
        )
        made.append(one)
        return one

    yield make
    for one in made:
        await one.close()
