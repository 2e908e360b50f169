"""What a handler may say about itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from olcore.errors import HandlerInvalidError
from olcore.handlers.options import Options
from olcore.handlers.settings import HandlerSettings, read
from olcore.interfaces import Limits, Network

OPTIONS = Options(
    limits=Limits(memory_mb=100),
    max_limits=Limits(memory_mb=500, timeout_s=60.0),
    network=Network.NONE,
    max_instances=4,
    max_queue=10,
    idle_timeout_s=300.0,
    pause_after_ms=0,
    memory_pool_mb=4096,
    registry_cache_ms=5000,
    max_bundle_mb=250,
    max_bundle_files=20000,
    packages_dir=Path("/packages"),
)


def settings(folder: Path, text: str = "", **files: str) -> HandlerSettings:
    (folder / "lambda_func.py").write_text("")
    if text:
        (folder / "olcore.toml").write_text(text)
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content)
    return read(folder, OPTIONS)


def test_a_handler_that_says_nothing_gets_the_workers_settings(tmp_path: Path) -> None:
    got = settings(tmp_path)
    assert got == HandlerSettings(
        limits=OPTIONS.limits,
        network=Network.NONE,
        environment={},
        entry=("lambda_func.py", "handler"),
        snapshot=False,
        reuse_sandbox=True,
    )


def test_a_handler_may_change_limits_one_by_one(tmp_path: Path) -> None:
    got = settings(tmp_path, "[limits]\nmemory_mb = 500\ntimeout_s = 5\n")
    assert got.limits == Limits(memory_mb=500, timeout_s=5.0)


def test_everything_can_be_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/main.py").write_text("")
    got = settings(
        tmp_path,
        'network = "nat"\nsnapshot = true\nentry = "pkg/main.py:run"\nreuse_sandbox = false\n'
        '[environment]\nA = "1"\n',
    )
    assert got.network is Network.NAT
    assert got.snapshot
    assert not got.reuse_sandbox
    assert got.entry == ("pkg/main.py", "run")
    assert got.environment == {"A": "1"}


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("[limit]\n", "unknown key 'limit'", "did you mean 'limits'?"),
        ("[limits]\nmemory = 1\n", "unknown key 'memory'", "did you mean 'memory_mb'?"),
        ("zzz = 1\n", "unknown key 'zzz'", "known keys: limits, network"),
        ("[limits]\nmemory_mb = 501\n", "limits.memory_mb = 501 .* at most 500", "max_limits"),
        ("[limits]\nmemory_mb = 0\n", "memory_mb = 0 is not above 0", "max_limits"),
        ("[limits]\ntimeout_s = nan\n", "timeout_s = nan is not above 0", "max_limits"),
        ("[limits]\nmemory_mb = 1.5\n", "limits: Expected `int`, got `float`", ""),
        ("[limits]\nmemory_mb = 'x'\n", r"Expected `int \| float`, got `str`", ""),
        ('network = "host"\n', "'host' reaches further than this worker allows, 'nat'", ""),
        ('network = "wifi"\n', "Invalid enum value 'wifi'", ""),
        ("[environment]\nA = 1\n", "Expected `str`, got `int`", ""),
        ('[environment]\n"A=B" = "1"\n', "'A=B' cannot be an environment variable", ""),
        ('[environment]\nA = "\\u0000"\n', "'A' cannot be", ""),
        ('entry = "main.py"\n', "is not of the form 'file.py:function'", "relative"),
        ('entry = "../main.py:f"\n', "is not of the form", "relative"),
        ('entry = "/main.py:f"\n', "is not of the form", "relative"),
        ('entry = "main.py:f"\n', "there is no file 'main.py'", ""),
        ("x = \n", r"olcore.toml: .*line 1", ""),
    ],
)
def test_what_is_wrong_is_named_with_the_way_out(
    tmp_path: Path, text: str, said: str, hint: str
) -> None:
    with pytest.raises(HandlerInvalidError, match=said) as caught:
        settings(tmp_path, text)
    assert hint in (caught.value.hint or "")


def test_a_settings_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "olcore.toml").symlink_to("/etc/hostname")
    with pytest.raises(HandlerInvalidError, match=r"olcore\.toml cannot be read"):
        settings(tmp_path)


def test_a_settings_file_that_is_huge_or_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "olcore.toml").write_bytes(b"#" * 70_000)
    with pytest.raises(HandlerInvalidError, match="more than 65536 bytes"):
        settings(tmp_path)
    (tmp_path / "olcore.toml").write_bytes(b"# \xff")
    with pytest.raises(HandlerInvalidError, match="not UTF-8 at byte 2"):
        settings(tmp_path)


def test_openlambdas_file_is_read_too_and_ours_goes_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    yaml = (
        "environment:\n  A: 1\n  B: yes\n  C:\n  D: text\n"
        "reuse-sandbox: false\ntriggers:\n  http:\n    - method: GET\n"
    )
    got = settings(tmp_path, "reuse_sandbox = true\n", ol_yaml=yaml)
    assert got.environment == {"A": "1", "B": "true", "C": "", "D": "text"}
    assert got.reuse_sandbox
    assert "'triggers' has no meaning here" in caplog.text


@pytest.mark.parametrize(
    "yaml", ["a: [", "- a", "environment: 3", "reuse-sandbox: maybe", "!!python/object:os.system"]
)
def test_openlambdas_file_may_not_be_just_anything(tmp_path: Path, yaml: str) -> None:
    with pytest.raises(HandlerInvalidError):
        settings(tmp_path, ol_yaml=yaml)


def test_a_worker_on_the_hosts_network_lets_its_handlers_ask_for_it(tmp_path: Path) -> None:
    import msgspec

    options = msgspec.structs.replace(OPTIONS, network=Network.HOST)
    (tmp_path / "f.py").write_text("")
    (tmp_path / "olcore.toml").write_text('network = "none"\n')
    assert read(tmp_path, options).network is Network.NONE
    (tmp_path / "olcore.toml").write_text('network = "host"\n')
    assert read(tmp_path, options).network is Network.HOST
