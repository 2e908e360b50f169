"""The contract of a registry backend as tests; a backend is done when its subclass of one of the two suites passes.

A plugin's test file holds little more than this::

    class TestMyContract(WritableRegistryContract):
        @pytest.fixture
        def make_registry(self, tmp_path: Path) -> Callable[[], Registry]:
            return lambda: MyRegistry(registry_context(tmp_path), MySettings(url=...))

Every call of ``make_registry`` makes another client of one and the same store, which is empty when a test begins. A
backend with ``writable = False`` takes RegistryContract, and has a fixture ``store`` that puts bundles there by another
way. The tests are coroutines: they need pytest-asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import pytest
import pytest_asyncio

from olcore import bundles
from olcore.errors import (
    ConflictError,
    HandlerInvalidError,
    HandlerNotFoundError,
    RegistryError,
)
from olcore.interfaces import HandlerVersion, Registry, RegistryContext

Store = Callable[[str, Path], Awaitable[None]]
"""Puts the bundle at a path into the store under a name."""

HELLO = "def handler(event):\n    return 'hello'\n"
BOUNDS = bundles.Bounds(max_mb=4, max_files=64)


def registry_context(registry_dir: Path, **changed: float) -> RegistryContext:
    """Make the context that a backend's test hands to its ``make``, with limits that the contract relies on."""
    values = {
        "timeout_s": 10.0,
        "max_bundle_mb": BOUNDS.max_mb,
        "max_bundle_files": BOUNDS.max_files,
    }
    return RegistryContext(registry_dir=registry_dir, **{**values, **changed})  # type: ignore[arg-type]


def make_bundle(folder: Path, files: Mapping[str, str]) -> Path:
    """Pack *files* (text by path) into a new bundle somewhere below *folder*."""
    number = len(list(folder.glob("bundle-*")))
    source = folder / f"bundle-{number}"
    for path, text in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(text)
    bundle = folder / f"bundle-{number}.tar.gz"
    bundles.pack(source, bundle, BOUNDS)
    return bundle


@pytest.mark.asyncio
class RegistryContract:
    """What holds for every registry; one that can be written passes WritableRegistryContract."""

    @pytest.fixture
    def make_registry(self) -> Callable[[], Registry]:
        """Return a function that makes one more client of the test's own store; not yet started."""
        raise NotImplementedError("a backend's contract test has a fixture make_registry")

    @pytest_asyncio.fixture
    async def registry(self, make_registry: Callable[[], Registry]) -> AsyncIterator[Registry]:
        """A started client, closed at the end."""
        registry = make_registry()
        await registry.start()
        yield registry
        await registry.close()

    @pytest.fixture
    def store(self, registry: Registry) -> Store:
        """Return what puts a bundle into the store."""
        raise NotImplementedError("a registry that is only read has a fixture store in its test")

    @pytest.fixture
    def bundle(self, tmp_path: Path) -> Path:
        """A small valid bundle."""
        return make_bundle(tmp_path, {"lambda_func.py": HELLO, "data/greeting.txt": "hello"})

    @pytest.fixture
    def target(self, tmp_path: Path) -> Path:
        """An empty folder to pull to."""
        target = tmp_path / "target"
        target.mkdir()
        return target

    async def test_what_is_stored_is_found_and_pulled(
        self, registry: Registry, store: Store, bundle: Path, target: Path
    ) -> None:
        await store("hello", bundle)
        found = await registry.lookup("hello")
        pulled = await registry.pull(found, target)
        assert pulled == found
        assert (target / "lambda_func.py").read_text() == HELLO
        assert (target / "data" / "greeting.txt").read_text() == "hello"

    async def test_every_name_a_handler_can_have_works(
        self, registry: Registry, store: Store, bundle: Path, target: Path
    ) -> None:
        names = sorted(["a", "Z-9_x.y", "hello.tar.gz", "x" * 128])
        for name in names:
            await store(name, bundle)
        assert [found.name for found in await registry.names()] == names
        for name in names:
            found = await registry.lookup(name)
            assert found.name == name
            await registry.pull(found, target)
            assert (target / "lambda_func.py").read_text() == HELLO
            bundles.empty(target)

    async def test_an_unknown_name_is_not_found(self, registry: Registry, target: Path) -> None:
        with pytest.raises(HandlerNotFoundError, match="missing"):
            await registry.lookup("missing")
        with pytest.raises(HandlerNotFoundError, match="missing"):
            await registry.pull(HandlerVersion(name="missing", version="1"), target)
        assert list(await registry.names()) == []

    async def test_a_peek_says_what_a_lookup_says_or_nothing(
        self, registry: Registry, store: Store, bundle: Path
    ) -> None:
        assert registry.peek("hello") is None
        await store("hello", bundle)
        found = await registry.lookup("hello")
        assert registry.peek("hello") in {None, found}

    async def test_a_version_is_safe_in_a_path(
        self, registry: Registry, store: Store, bundle: Path
    ) -> None:
        await store("hello", bundle)
        found = await registry.lookup("hello")
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", found.version)
        assert found.version not in {".", ".."}

    async def test_the_version_stays_while_the_code_does(
        self, registry: Registry, store: Store, bundle: Path
    ) -> None:
        await store("hello", bundle)
        first = await registry.lookup("hello")
        assert await registry.lookup("hello") == first
        assert list(await registry.names()) == [first]

    async def test_new_code_has_a_new_version(
        self, registry: Registry, store: Store, tmp_path: Path, target: Path
    ) -> None:
        await store("hello", make_bundle(tmp_path, {"lambda_func.py": "x = 1"}))
        old = await registry.lookup("hello")
        await store("hello", make_bundle(tmp_path, {"lambda_func.py": "x = 2"}))
        new = await registry.lookup("hello")
        assert new.version != old.version
        # Who still asks for the old one gets what there is, and is told so.
        assert await registry.pull(old, target) == new
        assert (target / "lambda_func.py").read_text() == "x = 2"

    async def test_another_client_of_the_store_sees_the_same(
        self,
        registry: Registry,
        make_registry: Callable[[], Registry],
        store: Store,
        bundle: Path,
    ) -> None:
        await store("hello", bundle)
        other = make_registry()
        await other.start()
        try:
            assert await other.lookup("hello") == await registry.lookup("hello")
            assert list(await other.names()) == list(await registry.names())
        finally:
            await other.close()

    async def test_lookups_and_pulls_at_once_agree(
        self, registry: Registry, store: Store, bundle: Path, tmp_path: Path
    ) -> None:
        await store("hello", bundle)
        found = await asyncio.gather(*(registry.lookup("hello") for _ in range(8)))
        targets = [tmp_path / f"target-{number}" for number in range(4)]
        for target in targets:
            target.mkdir()
        pulled = await asyncio.gather(*(registry.pull(found[0], target) for target in targets))
        assert set(found) == set(pulled) == {found[0]}
        assert all((target / "lambda_func.py").read_text() == HELLO for target in targets)

    async def test_a_damaged_bundle_is_refused(
        self, registry: Registry, store: Store, bundle: Path, tmp_path: Path, target: Path
    ) -> None:
        damaged = tmp_path / "damaged.tar.gz"
        damaged.write_bytes(bundle.read_bytes()[:-20])
        await self._stored_or_refused(registry, store, damaged, target)

    async def test_a_bundle_that_leads_out_writes_nothing_outside(
        self, registry: Registry, store: Store, tmp_path: Path, target: Path
    ) -> None:
        evil = tmp_path / "evil.tar.gz"
        with tarfile.open(evil, "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("../escaped"))
        await self._stored_or_refused(registry, store, evil, target)
        assert not (tmp_path / "escaped").exists()

    async def test_a_bundle_over_the_limits_is_refused(
        self, registry: Registry, store: Store, tmp_path: Path, target: Path
    ) -> None:
        big = tmp_path / "big.tar.gz"
        source = tmp_path / "big"
        source.mkdir()
        (source / "zeros").write_bytes(bytes((BOUNDS.max_mb << 20) + 1))
        bundles.pack(source, big, bundles.Bounds(max_mb=64, max_files=64))
        await self._stored_or_refused(registry, store, big, target)

    async def test_close_twice_does_nothing(self, make_registry: Callable[[], Registry]) -> None:
        registry = make_registry()
        await registry.start()
        await registry.close()
        await registry.close()

    async def test_it_can_be_written_if_it_says_so_and_else_refuses(
        self, registry: Registry, bundle: Path
    ) -> None:
        if registry.writable:
            assert isinstance(self, WritableRegistryContract), (
                "a writable registry has more to pass"
            )
            await registry.publish("hello", bundle)
            await registry.remove("hello")
            return
        with pytest.raises(RegistryError):
            await registry.publish("hello", bundle)
        with pytest.raises(RegistryError):
            await registry.remove("hello")

    @staticmethod
    async def _stored_or_refused(
        registry: Registry, store: Store, bundle: Path, target: Path
    ) -> None:
        # Some stores look into what they are given and some only hand it out; either may say no.
        async def store_and_pull() -> None:
            await store("bad", bundle)
            await registry.pull(await registry.lookup("bad"), target)

        with pytest.raises(HandlerInvalidError):
            await store_and_pull()


class WritableRegistryContract(RegistryContract):
    """What also holds for a registry that can be written."""

    @pytest.fixture
    def store(self, registry: Registry) -> Store:
        """Return what puts a bundle into the store; override where ``publish`` refuses what a test needs there."""

        async def publish(name: str, bundle: Path) -> None:
            await registry.publish(name, bundle)

        return publish

    async def test_publishing_tells_the_version_that_lookup_finds(
        self, registry: Registry, bundle: Path
    ) -> None:
        published = await registry.publish("hello", bundle)
        assert published.name == "hello"
        assert await registry.lookup("hello") == published

    async def test_removing_leaves_nothing(self, registry: Registry, bundle: Path) -> None:
        await registry.publish("hello", bundle)
        await registry.publish("other", bundle)
        await registry.remove("hello")
        with pytest.raises(HandlerNotFoundError):
            await registry.lookup("hello")
        with pytest.raises(HandlerNotFoundError):
            await registry.remove("hello")
        assert [found.name for found in await registry.names()] == ["other"]

    async def test_publishing_over_another_version_than_named_conflicts(
        self, registry: Registry, bundle: Path, tmp_path: Path
    ) -> None:
        first = await registry.publish("hello", bundle, if_version="")
        newer = make_bundle(tmp_path, {"lambda_func.py": "x = 2"})
        for wrong in ("", "0123456789abcdef"):
            with pytest.raises(ConflictError, match="hello"):
                await registry.publish("hello", newer, if_version=wrong)
        assert await registry.lookup("hello") == first
        second = await registry.publish("hello", newer, if_version=first.version)
        assert await registry.lookup("hello") == second != first
        with pytest.raises(ConflictError, match="missing"):
            await registry.publish("missing", bundle, if_version=first.version)

    async def test_removing_another_version_than_named_conflicts(
        self, registry: Registry, bundle: Path
    ) -> None:
        published = await registry.publish("hello", bundle)
        with pytest.raises(ConflictError, match="hello"):
            await registry.remove("hello", if_version="0123456789abcdef")
        assert await registry.lookup("hello") == published
        await registry.remove("hello", if_version=published.version)
        with pytest.raises(HandlerNotFoundError):
            await registry.remove("hello", if_version=published.version)

    async def test_one_of_those_who_publish_at_once_is_first(
        self, make_registry: Callable[[], Registry], registry: Registry, tmp_path: Path
    ) -> None:
        contents = [make_bundle(tmp_path, {"lambda_func.py": f"x = {n}"}) for n in range(4)]
        async with contextlib.AsyncExitStack() as undo:
            clients = [make_registry() for _ in contents]
            for client in clients:
                await client.start()
                undo.push_async_callback(client.close)
            outcomes = await asyncio.gather(
                *(
                    c.publish("hello", b, if_version="")
                    for c, b in zip(clients, contents, strict=True)
                ),
                return_exceptions=True,
            )
        first = [outcome for outcome in outcomes if isinstance(outcome, HandlerVersion)]
        assert [await registry.lookup("hello")] == first
        assert sum(isinstance(outcome, ConflictError) for outcome in outcomes) == len(contents) - 1

    async def test_a_reader_never_sees_half_an_upload(
        self, registry: Registry, tmp_path: Path
    ) -> None:
        versions = [
            make_bundle(tmp_path, {"lambda_func.py": f"{n}", "twin.py": f"{n}"}) for n in range(2)
        ]
        last = await registry.publish("hello", versions[0])
        publishing = asyncio.gather(*(registry.publish("hello", versions[n % 2]) for n in range(6)))
        reading = 0
        while not publishing.done() or not reading:
            target = tmp_path / f"read-{reading}"
            target.mkdir()
            # A store may say that it changes too fast to be read; it may not hand out a mixture.
            with contextlib.suppress(RegistryError):
                await registry.pull(last, target)
                assert (target / "lambda_func.py").read_text() == (target / "twin.py").read_text()
            reading += 1
        await publishing
