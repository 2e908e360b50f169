"""The image that sandboxes start from is made from what is on the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from ol_sandbox_docker.commands import image, read
from ol_sandbox_docker.engine import Engine
from ol_sandbox_docker.image import host_files, import_folder
from ol_sandbox_docker.pool import DockerPool
from ol_sandbox_docker.settings import DockerSettings
from olcore.errors import ClusterError, ConfigError, SandboxError
from olcore.interfaces import WorkerContext
from olcore.testing.rendezvous import DEADLINE_S, Rig
from olcore.testing.sandbox import ECHO, SandboxFixtures


def _cluster(folder: Path, settings: DockerSettings) -> Path:
    (folder / "config").mkdir()
    template = {"docker": msgspec.to_builtins(settings), "base_dir": "base"}
    (folder / "config" / "template.json").write_text(json.dumps(template))
    (folder / "base").mkdir()
    return folder


def _build(cluster: Path, *more: str) -> str:
    done = CliRunner().invoke(image, ["build", "--cluster", str(cluster), *more])
    if done.exception is not None:
        raise done.exception
    return done.output


def test_a_folder_without_a_template_is_no_cluster(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="is no cluster"):
        read(tmp_path)


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "template.json").write_text('{"docker": {"image": 3}}')
    with pytest.raises(ConfigError, match=r"image"):
        read(tmp_path)


def test_the_host_s_python_comes_with_its_library_and_what_it_links_to() -> None:
    interpreter = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    files = host_files(interpreter)
    assert {interpreter.name, "socket.py", "libc.so.6", "sh"} <= {path.name for path in files}
    assert not any("site-packages" in str(path) for path in files)


@pytest.mark.docker
@pytest.mark.timeout(300)
class TestWithAnEngine(SandboxFixtures):
    @pytest.fixture
    def own(self, settings: DockerSettings) -> Iterator[DockerSettings]:
        """Settings with an image name of this test's own, gone afterwards."""
        own = msgspec.structs.replace(settings, image="ol-built")
        yield own
        for name in ("ol-built", "ol-empty"):
            subprocess.run(
                ["docker", "-H", settings.base_url, "image", "rm", "-f", name],
                check=False,
                capture_output=True,
            )

    async def _answers(
        self, context: WorkerContext, settings: DockerSettings, folder: Path
    ) -> None:
        pool = DockerPool(context, settings)
        await pool.start()
        (folder / "rig").mkdir()
        rig = Rig(pool, folder / "rig")
        try:
            assert await (await rig.run(ECHO)).call("well") == "well"
        finally:
            await rig.close()
            await pool.close()

    async def test_an_image_that_is_gone_names_what_makes_it(
        self, own: DockerSettings, tmp_path: Path, context: WorkerContext, settings: DockerSettings
    ) -> None:
        engine = Engine(own.base_url, DEADLINE_S)
        engine.tag(settings.image, own.image)
        pool = DockerPool(context, own)
        await pool.start()
        engine.remove_image(own.image)
        engine.close()
        rig = Rig(pool, tmp_path)
        with pytest.raises(SandboxError, match="No such image") as caught:
            await rig.run(ECHO)
        assert "olcore image build" in str(caught.value.hint)
        await rig.close()
        await pool.close()

    async def test_a_tmp_that_an_image_brings_can_be_written_to(
        self, own: DockerSettings, tmp_path: Path, context: WorkerContext, rootfs: Path
    ) -> None:
        cluster = tmp_path / "cluster"
        chosen = json.dumps({"docker": msgspec.to_builtins(own)})
        for command in (["new", "--base", str(rootfs)], ["setconf", chosen]):
            subprocess.run(
                [sys.executable, "-m", "olcore", *command, "--cluster", cluster], check=True
            )
        _build(cluster)
        pool = DockerPool(context, own)
        await pool.start()
        rig = Rig(pool, tmp_path)
        source = "def handler(event):\n    return open('/tmp/file', 'w').write(event)\n"
        assert await (await rig.run(source)).call("well") == 4
        await rig.close()
        await pool.close()

    def test_a_base_that_cannot_be_read_leaves_the_image_that_there_was(
        self, own: DockerSettings, tmp_path: Path, settings: DockerSettings
    ) -> None:
        engine = Engine(own.base_url, DEADLINE_S)
        engine.tag(settings.image, own.image)
        before = engine.image(own.image)
        with pytest.raises(SandboxError, match=r"cannot read '.*none'.*No such file"):
            import_folder(engine, tmp_path / "none", own.image, lambda _count: None)
        assert engine.image(own.image) == before
        engine.close()

    def test_building_again_leaves_no_image_behind_and_no_name_of_others(
        self, own: DockerSettings, tmp_path: Path, settings: DockerSettings
    ) -> None:
        engine = Engine(own.base_url, DEADLINE_S)
        (tmp_path / "tree").mkdir()
        import_folder(engine, tmp_path / "tree", own.image, lambda _count: None)
        first = engine.image(own.image)
        engine.tag(settings.image, own.image)
        import_folder(engine, tmp_path / "tree", own.image, lambda _count: None)
        second = engine.image(own.image)
        assert first is not None
        assert second is not None
        assert engine.image(settings.image) is not None
        import_folder(engine, tmp_path / "tree", own.image, lambda _count: None)
        assert engine.image(second["Id"]) is None
        with pytest.raises(SandboxError, match="invalid reference"):
            import_folder(engine, tmp_path / "tree", "No Name", lambda _count: None)
        engine.close()

    async def test_an_empty_base_gives_this_machine_s_python(
        self, own: DockerSettings, tmp_path: Path, context: WorkerContext
    ) -> None:
        (tmp_path / "cluster").mkdir()
        said = _build(_cluster(tmp_path / "cluster", own))
        assert f"with Python {sys.version.split()[0]}" in said
        await self._answers(context, own, tmp_path)

    async def test_the_base_of_a_cluster_becomes_the_image(
        self, own: DockerSettings, tmp_path: Path, context: WorkerContext, rootfs: Path
    ) -> None:
        (tmp_path / "cluster").mkdir()
        cluster = _cluster(tmp_path / "cluster", own)
        subprocess.run(["tar", "-C", cluster / "base", "-xf", rootfs], check=True)
        assert "Image: ol-built, with Python 3." in _build(cluster)
        await self._answers(context, own, tmp_path)

    def test_a_base_without_python_says_what_is_missing(
        self, own: DockerSettings, tmp_path: Path
    ) -> None:
        cluster = _cluster(tmp_path, msgspec.structs.replace(own, image="ol-empty"))
        (cluster / "base" / "etc").mkdir()
        with pytest.raises(SandboxError, match="'python3' of the image 'ol-empty' cannot run"):
            _build(cluster)

    def test_an_image_that_cannot_be_pulled_says_why(
        self, own: DockerSettings, tmp_path: Path
    ) -> None:
        with pytest.raises(SandboxError, match="Docker"):
            _build(_cluster(tmp_path, own), "--pull", "localhost:1/ol-none:1")
