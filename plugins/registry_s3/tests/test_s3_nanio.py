"""What nanio leaves when it is killed is mended before it runs again."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ol_registry_s3.nanio_server import mend
from ol_registry_s3.plugin import ol_registry_backends
from ol_registry_s3.settings import S3Settings
from olcore.interfaces import Registry
from olcore.testing.registry import make_bundle, registry_context

from .conftest import Nanio  # noqa: TID252  # its full name depends on where pytest is run


@pytest.fixture
async def registry(nanio: Nanio, tmp_path: Path) -> AsyncIterator[Registry]:
    [backend] = ol_registry_backends()
    settings = S3Settings(**nanio.settings(nanio.make_bucket("handlers")))
    registry: Registry = backend.make(registry_context(tmp_path), settings)
    await registry.start()
    yield registry
    await registry.close()


async def test_an_upload_that_was_cut_short_by_a_kill_is_whole_and_can_be_repeated(
    registry: Registry, nanio: Nanio, tmp_path: Path
) -> None:
    old = make_bundle(tmp_path, {"lambda_func.py": "x = 1"})
    new = make_bundle(tmp_path, {"lambda_func.py": "x = 2", "more.py": os.urandom(999).hex()})
    await registry.publish("hello", old)
    nanio.stop()
    bucket = nanio.folder / "handlers"
    # As nanio is between its two renames, and with a second upload on its way.
    (bucket / "hello.tar.gz").write_bytes(new.read_bytes())
    (bucket / ".nanio-meta" / "hello.tar.gz.json.tmp").write_text('{"etag"')
    (bucket / f".tmp.{uuid.uuid4().hex}").write_bytes(b"half")
    assert mend(nanio.folder) == [bucket / "hello.tar.gz"]
    nanio.start()
    found = await registry.lookup("hello")
    assert found.version == hashlib.md5(new.read_bytes()).hexdigest()
    assert list(await registry.names()) == [found]
    (tmp_path / "target").mkdir()
    await registry.pull(found, tmp_path / "target")
    assert (tmp_path / "target" / "more.py").is_file()
    await registry.publish("hello", old, if_version=found.version)
    assert sorted(path.name for path in bucket.iterdir()) == [".nanio-meta", "hello.tar.gz"]


async def test_mending_what_is_whole_changes_no_version(
    registry: Registry, nanio: Nanio, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path, {"lambda_func.py": "x = 1"})
    before = [await registry.publish(name, bundle) for name in ("a", "b")]
    nanio.stop()
    mend(nanio.folder)
    nanio.start()
    assert list(await registry.names()) == before


async def test_a_bundle_put_into_the_folder_by_hand_has_a_version_that_changes(
    registry: Registry, nanio: Nanio, tmp_path: Path
) -> None:
    bundles = [make_bundle(tmp_path, {"lambda_func.py": text}) for text in ("x = 1", "x = 1000")]
    versions = set()
    for bundle in bundles:
        (nanio.folder / "handlers" / "hello.tar.gz").write_bytes(bundle.read_bytes())
        found = await registry.lookup("hello")
        assert list(await registry.names()) == [found]
        versions.add(found.version)
    assert len(versions) == 2
    nanio.stop()
    assert len(mend(nanio.folder)) == 1
    assert mend(nanio.folder) == []
    nanio.start()
    expected = hashlib.md5(bundles[-1].read_bytes()).hexdigest()
    assert (await registry.lookup("hello")).version == expected


def test_nothing_outside_the_buckets_is_touched(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    folder = tmp_path / "data"
    for place in (outside, folder / "bucket", folder / ".nanio"):
        place.mkdir(parents=True)
    left = [outside / ".tmp.x", folder / ".nanio" / ".tmp.x"]
    for path in left:
        path.touch()
    (folder / "linked").symlink_to(outside)
    (folder / "bucket" / "link.tar.gz").symlink_to(outside / ".tmp.x")
    assert mend(folder) == []
    assert all(path.exists() for path in left)
    assert not (folder / "bucket" / ".nanio-meta").exists()
