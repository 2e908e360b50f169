"""The cache over a pool of fake zygotes, which are real processes that really import."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from ol_cache_import.cache import TreeCache
from ol_cache_import.plugin import TreeSettings, ol_import_cache_backends
from olcore.errors import ConfigError
from olcore.interfaces import (
    ImportRecord,
    Limits,
    Network,
    SandboxSpec,
    Wanted,
    Wheel,
    WorkerContext,
    Zygote,
)
from olcore.testing.zygotes import FakeZygotePool

DEADLINE_S = 20.0
Make = Callable[..., Any]


@pytest.fixture
def context(tmp_path: Path) -> WorkerContext:
    folders = {name: tmp_path / name for name in ("worker", "base", "packages")}
    for folder in folders.values():
        folder.mkdir()
    files = {
        "base-1-py3-none-any/base.py": "try:\n    import turbo\nexcept ImportError:\n    pass\n",
        "top-2-py3-none-any/top/__init__.py": "import base\n",
        "top-2-py3-none-any/top-2.dist-info/METADATA": "Name: top\nVersion: 2\nRequires-Dist: base>=1\n",
        "turbo-1-py3-none-any/turbo.py": "",
        "crash-1-py3-none-any/crash.py": "import os\nos.abort()\n",
        "needy-1-py3-none-any/needy.py": "import base\n",
    }
    for name, text in files.items():
        file = folders["packages"] / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return WorkerContext(
        cluster_name="test",
        worker_name="worker-0",
        worker_dir=folders["worker"],
        base_dir=folders["base"],
        packages_dir=folders["packages"],
        limits=Limits(),
        network=Network.NONE,
    )


@pytest.fixture
async def pool(context: WorkerContext) -> AsyncIterator[FakeZygotePool]:
    pool = FakeZygotePool(context.packages_dir)
    await pool.start()
    yield pool
    await pool.close()


@pytest.fixture
async def make(context: WorkerContext, pool: FakeZygotePool) -> AsyncIterator[Make]:
    made = []

    async def make(**settings: Any) -> TreeCache:
        cache = TreeCache(context, TreeSettings(**settings), pool)
        made.append(cache)
        await cache.start()
        await settled(cache)
        return cache

    yield make
    for cache in made:
        await cache.close()


async def settled(cache: TreeCache) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await cache.settle()


def wanted(*names: str, handler: str = "h") -> Wanted:
    version = {"top": 2}
    return Wanted(
        handler=handler,
        wheels=tuple(
            Wheel(folder=f"{name}-{version.get(name, 1)}-py3-none-any", modules=frozenset({name}))
            for name in names
        ),
    )


def records(one: Wanted) -> list[ImportRecord]:
    return [
        ImportRecord(
            module=name, file=f"/packages/{wheel.folder}/{name}.py", self_us=50_000, self_kb=0
        )
        for wheel in one.wheels
        for name in wheel.modules
    ]


async def started(cache: TreeCache, one: Wanted) -> Zygote | None:
    """Do what the core does for one cold start, as if the handler imported all its wheels."""
    zygote = cache.choose(one)
    cache.observe(one, records(one) if zygote is None else [])
    await settled(cache)
    return zygote


async def test_the_first_start_finds_nothing_and_the_second_a_zygote(
    make: Make, context: WorkerContext
) -> None:
    cache = await make()
    assert await started(cache, wanted("base")) is None
    zygote = await started(cache, wanted("base"))
    assert zygote is not None
    assert [record.module for record in zygote.imported][-1] == "base"
    assert (context.worker_dir / "import-cache" / zygote.id / "stderr").is_file()
    (said,) = cache.describe()
    assert said["wheels"] == ["base-1-py3-none-any"]


async def test_a_handler_never_seen_is_forked_from_what_has_its_wheels(make: Make) -> None:
    cache = await make()
    await started(cache, wanted("base", handler="first"))
    assert cache.choose(wanted("base", handler="second")) is not None
    assert cache.choose(wanted("top", handler="third")) is None
    # What it missed, turbo, would have been there for this one.
    assert cache.choose(wanted("base", "turbo", handler="fourth")) is None


async def test_a_crash_on_import_is_remembered_and_hurts_no_other_package(
    make: Make, pool: FakeZygotePool
) -> None:
    cache = await make()
    assert await started(cache, wanted("crash")) is None
    assert await started(cache, wanted("crash")) is None
    tried = len(pool.zygotes)
    await started(cache, wanted("base", handler="other"))
    assert len(pool.zygotes) == tried + 1
    assert cache.choose(wanted("base", handler="other")) is not None


async def test_a_missing_dependency_does_not_spoil_the_package(make: Make) -> None:
    cache = await make()
    await started(cache, wanted("needy", handler="alone"))
    await started(cache, wanted("needy", "base", handler="whole"))
    assert cache.choose(wanted("needy", "base", handler="whole")) is not None


async def test_a_zygote_that_cannot_fork_is_retired_for_good(
    make: Make, context: WorkerContext
) -> None:
    cache = await make()
    await started(cache, wanted("base"))
    zygote = cache.choose(wanted("base"))
    assert zygote is not None
    cache.failed(zygote, "its child died")
    assert cache.choose(wanted("base")) is None
    cache.failed(zygote, "said twice")
    await wait_until(lambda: not zygote.alive)
    assert await started(cache, wanted("base")) is None
    assert cache.describe() == []


async def test_a_zygote_that_died_is_not_chosen_and_made_anew(
    make: Make, pool: FakeZygotePool
) -> None:
    cache = await make()
    await started(cache, wanted("base"))
    os.killpg(pool.zygotes[0].pid, signal.SIGKILL)
    await wait_until(lambda: not pool.zygotes[0].alive)
    assert cache.choose(wanted("base")) is None
    await settled(cache)
    assert cache.choose(wanted("base")) is not None


async def test_a_zygote_killed_while_it_was_to_be_forked_gets_two_more_chances_until_a_restart(
    make: Make, pool: FakeZygotePool
) -> None:
    cache = await make()
    await started(cache, wanted("base"))
    for _ in range(3):
        zygote = cache.choose(wanted("base"))
        assert zygote is pool.zygotes[-1]
        os.killpg(pool.zygotes[-1].pid, signal.SIGKILL)
        await wait_until(lambda: not pool.zygotes[-1].alive)
        cache.failed(zygote, "its parent is dead")
        cache.failed(zygote, "said twice")
        await settled(cache)
    assert cache.choose(wanted("base")) is None
    await cache.close()
    assert (await make()).choose(wanted("base")) is not None


async def test_shrinking_frees_idle_zygotes_and_keeps_those_with_descendants(
    make: Make, pool: FakeZygotePool, tmp_path: Path
) -> None:
    cache = await make()
    await started(cache, wanted("base"))
    zygote = cache.choose(wanted("base"))
    code, scratch = tmp_path / "code", tmp_path / "scratch"
    code.mkdir()
    await pool.make_scratch(scratch, Limits())
    spec = SandboxSpec(
        id="1",
        handler="h",
        code=code,
        scratch=scratch,
        limits=Limits(),
        network=Network.NONE,
        zygote=zygote,
    )
    sandbox = await pool.create(spec)
    assert await cache.shrink(1 << 40) == 0
    assert cache.choose(wanted("base")) is zygote
    await sandbox.destroy()
    assert zygote is not None
    await wait_until(lambda: zygote.descendants == 0)
    assert await cache.shrink(1) == zygote.memory_bytes
    assert cache.choose(wanted("base")) is None


async def test_the_memory_limit_holds(make: Make) -> None:
    cache = await make(import_cache_mb=1)
    await started(cache, wanted("base"))
    assert cache.describe() == []


async def test_a_restart_is_warm(make: Make, context: WorkerContext) -> None:
    first = await make()
    await started(first, wanted("base", "top"))
    await first.close()
    second = await make()
    assert second.choose(wanted("base", "top")) is not None


async def test_a_restart_forgets_wheels_that_are_gone(make: Make, context: WorkerContext) -> None:
    first = await make()
    await started(first, wanted("base"))
    await first.close()
    folder = context.packages_dir / "base-1-py3-none-any"
    folder.rename(context.packages_dir / "base-2-py3-none-any")
    second = await make()
    assert second.describe() == []


async def test_a_damaged_memory_is_ignored(make: Make, context: WorkerContext) -> None:
    (context.worker_dir / "tree").mkdir()
    (context.worker_dir / "tree" / "learned.json").write_text("{")
    assert (await make()).describe() == []


async def test_learning_can_be_switched_off(make: Make, context: WorkerContext) -> None:
    cache = await make(learn=False)
    await started(cache, wanted("base"))
    await cache.close()
    assert not (context.worker_dir / "tree").exists()


async def test_a_tree_in_a_file_is_there_at_start(make: Make, context: WorkerContext) -> None:
    tree = {"packages": ["base"], "children": [{"packages": ["top==2"], "split_gen": 1}]}
    (context.worker_dir / "tree.json").write_text(json.dumps(tree))
    cache = await make(import_cache_tree="tree.json")
    assert [(one["imports"], one["parent"]) for one in cache.describe()] == [
        (["base"], None),
        (["top"], "0"),
    ]
    assert cache.choose(wanted("base", "top")) is not None
    # Asked for by the operator, so kept.
    assert await cache.shrink(1 << 40) == 0


async def test_a_packages_dependencies_are_on_its_zygotes_path(
    make: Make, context: WorkerContext
) -> None:
    (context.worker_dir / "tree.json").write_text('{"packages": ["top"]}')
    cache = await make(import_cache_tree="tree.json")
    assert cache.describe()[0]["wheels"] == ["base-1-py3-none-any", "top-2-py3-none-any"]


async def test_a_package_of_the_tree_that_is_not_installed_is_made_when_it_is(
    make: Make, context: WorkerContext, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (context.worker_dir / "tree.json").write_text(
        '{"packages": ["late==1.0"], "imports": ["late"]}'
    )
    cache = await make(import_cache_tree="tree.json")
    assert cache.describe() == []
    await started(cache, wanted("turbo"))
    assert caplog.text.count("not preloaded: late==1.0") == 1
    folder = context.packages_dir / "late-1.0-py3-none-any"
    folder.mkdir()
    (folder / "late.py").write_text("")
    await started(cache, wanted("base"))
    assert ["late-1.0-py3-none-any"] in [one["wheels"] for one in cache.describe()]


@pytest.mark.parametrize("text", ["{", "[1]", '{"packages": "numpy"}'])
async def test_a_tree_that_cannot_be_read_is_named(
    make: Make, context: WorkerContext, text: str
) -> None:
    (context.worker_dir / "tree.json").write_text(text)
    with pytest.raises(ConfigError, match=r"tree\.json"):
        await make(import_cache_tree="tree.json")


async def test_closing_destroys_every_zygote_and_their_folders(
    make: Make, pool: FakeZygotePool, context: WorkerContext
) -> None:
    cache = await make()
    await started(cache, wanted("base"))
    await started(cache, wanted("base", "top", handler="other"))
    await cache.close()
    await cache.close()
    assert not [zygote for zygote in pool.zygotes if zygote.alive]
    assert not list((context.worker_dir / "import-cache").iterdir())


def test_the_plugin_offers_the_tree(context: WorkerContext, tmp_path: Path) -> None:
    (backend,) = ol_import_cache_backends()
    assert backend.name == "tree"
    assert backend.settings() == TreeSettings()
    made = backend.make(context, TreeSettings(), FakeZygotePool(tmp_path))
    assert isinstance(made, TreeCache)


async def wait_until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not is_so():
            await asyncio.sleep(0.01)


async def test_a_submodule_that_cannot_be_preloaded_leaves_its_package(make: Make) -> None:
    cache = await make()
    one = wanted("base", "top")
    cache.choose(one)
    said = ImportRecord(
        module="top.claimed",
        file="/packages/top-2-py3-none-any/top/claimed.py",
        self_us=1,
        self_kb=0,
    )
    cache.observe(one, [*records(one), said])
    await settled(cache)
    zygote = cache.choose(one)
    assert zygote is not None
    assert "top" in [record.module for record in zygote.imported]
