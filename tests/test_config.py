"""The configuration: defaults, merge, checks, paths."""

from __future__ import annotations

import json
import stat
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from olcore import config
from olcore.errors import ConfigError


class Engine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of a backend."""

    warm: Annotated[int, msgspec.Meta(ge=0)] = 2
    url: str = "unix:/run/engine"


SECTIONS = {"engine": Engine}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def refusal(raw: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        config.check(raw, SECTIONS, "f.json")
    return caught.value


def test_nothing_said_means_every_default() -> None:
    settings = config.check({}, SECTIONS)
    assert settings == config.Settings(config.Config(), {"engine": Engine()})


def test_the_defaults_written_down_are_the_defaults() -> None:
    written = json.loads(json.dumps(config.defaults(SECTIONS)))
    assert config.check(written, SECTIONS) == config.check({}, SECTIONS)
    assert written["engine"] == {"warm": 2, "url": "unix:/run/engine"}


@pytest.mark.parametrize("port", [8081, "8081"], ids=["number", "text"])
def test_a_port_may_be_text_as_openlambda_writes_it(port: object) -> None:
    assert config.check({"worker_port": port}, SECTIONS).core.worker_port == 8081


def test_a_fraction_may_be_given_as_a_whole_number() -> None:
    settings = config.check({"idle_timeout_s": 5, "limits": {"timeout_s": 1}}, SECTIONS)
    assert (settings.core.idle_timeout_s, settings.core.limits.timeout_s) == (5.0, 1.0)


@pytest.mark.parametrize(
    ("raw", "message", "hint"),
    [
        ({"sandbux": "x"}, "f.json: unknown key 'sandbux'", "did you mean 'sandbox'?"),
        (
            {"engin": {}},
            "f.json: unknown key 'engin'",
            "install the plugin that reads it; or did you mean 'engine'?",
        ),
        (
            {"limits": {"memry_mb": 1}},
            "f.json, at `$.limits`: unknown key 'memry_mb'",
            "did you mean 'memory_mb'?",
        ),
        (
            {"engine": {"wram": 1}},
            "f.json: engine, at `$.engine`: unknown key 'wram'",
            "did you mean 'warm'?",
        ),
        (
            {"engine": {"warm": -1}},
            "f.json: engine: Expected `int` >= 0 - at `$.engine.warm`",
            None,
        ),
        ({"engine": 1}, "f.json: engine: Expected `object`, got `int` - at `$.engine`", None),
        ({"cors": "yes"}, "f.json: Expected `bool`, got `str` - at `$.cors`", None),
        (
            {"network": "wifi"},
            "f.json: Invalid enum value 'wifi' - at `$.network`",
            "one of: none, nat, host",
        ),
        (
            {"log_level": "loud"},
            "f.json: Invalid enum value 'loud' - at `$.log_level`",
            "one of: debug, info, warning, error",
        ),
        (
            {"limits": {"memory_mb": -5}},
            "f.json: Expected `int` >= 1 - at `$.limits.memory_mb`",
            None,
        ),
        (
            {"max_limits": {"timeout_s": 0}},
            "f.json: Expected `float` > 0.0 - at `$.max_limits.timeout_s`",
            None,
        ),
        (
            {"worker_host": ""},
            "f.json: Expected `str` of length >= 1 - at `$.worker_host`",
            None,
        ),
        ({"pip_mirror": "u"}, "f.json: 'pip_mirror' is a key of OpenLambda", "here it is 'package_index'"),
        ({"registry": "remote"}, "f.json: registry: 'remote' is OpenLambda's", "here it is 's3'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place_and_the_way_out(
    raw: dict[str, Any], message: str, hint: str | None
) -> None:
    error = refusal(raw)
    assert (error.message, error.hint) == (message, hint)


def test_a_key_like_no_other_is_answered_with_all_there_are() -> None:
    hint = refusal({"qqqq": 1}).hint
    assert hint
    assert hint.startswith("known keys: allow_source_builds, api_key, ")
    assert ", engine, " in hint


def test_the_settings_of_a_backend_that_is_not_chosen_are_checked_too() -> None:
    assert "engine" in refusal({"sandbox": "other", "engine": {"warm": "x"}}).message


def test_only_objects_that_nobody_reads_are_foreign() -> None:
    raw = {"vm": {}, "engine": {}, "limits": {}, "typo": 1, "sandbox_config": {}}
    assert config.foreign_sections(raw, SECTIONS) == ["vm"]


# The examples of RFC 7396's appendix that are objects.
@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merging_is_that_of_rfc_7396(target: Any, patch: Any, result: Any) -> None:
    assert config.merge(target, patch) == result


@given(st.dictionaries(st.text(), JSON), st.dictionaries(st.text(), JSON))
def test_merging_twice_is_merging_once_and_changes_no_argument(target: Any, patch: Any) -> None:
    before = json.dumps([target, patch])
    once = config.merge(target, patch)
    assert config.merge(once, patch) == once
    assert json.dumps([target, patch]) == before


@given(st.dictionaries(st.sampled_from([*config.Config.__struct_fields__, "engine", "x"]), JSON))
def test_any_object_is_either_a_configuration_or_refused(raw: dict[str, Any]) -> None:
    # Any other exception fails this test.
    with suppress(ConfigError):
        config.check(raw, SECTIONS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON: Expecting value at line 1 column 1"),
        ('{\n "a": }', "not JSON: Expecting value at line 2 column 7"),
        ("[]", "expected a JSON object, got list"),
        ("null", "expected a JSON object, got NoneType"),
    ],
)
def test_what_is_no_object_is_refused_with_the_position(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "f.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        config.read(file)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_bytes(b"\xff\xfe{")
    with pytest.raises(ConfigError, match=r"f\.json: not UTF-8: invalid start byte at byte 0"):
        config.read(file)


def test_what_is_written_is_read_and_only_its_owner_may(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    config.write(file, {"api_key": "hush"})
    config.write(file, {"api_key": "hush", "cors": True})
    assert config.read(file) == {"api_key": "hush", "cors": True}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_in_no_folder_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write .*/no/f\.json': No such file"):
        config.write(tmp_path / "no" / "f.json", {})


def test_relative_paths_count_from_the_files_folder(tmp_path: Path) -> None:
    core = config.Config(registry_dir="/far/r", packages_dir="../p", package_find_links="w")
    resolved = config.resolve(core, tmp_path / "one.json")
    assert resolved.worker_dir == f"{tmp_path}/workers/one"
    assert resolved.registry_dir == "/far/r"
    assert resolved.packages_dir == f"{tmp_path.parent}/p"
    assert resolved.base_dir == f"{tmp_path}/base"
    assert resolved.package_find_links == f"{tmp_path}/w"
    assert resolved.cluster_name == str(tmp_path)


def test_a_url_of_wheels_is_no_path(tmp_path: Path) -> None:
    core = config.Config(package_find_links="https://wheels.example/x")
    assert config.resolve(core, tmp_path / "f").package_find_links == core.package_find_links
    assert config.resolve(config.Config(), tmp_path / "f").package_find_links == ""


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://localhost:8080"),
        ("0.0.0.0", "http://localhost:8080"),
        ("10.1.2.3", "http://10.1.2.3:8080"),
        ("fd00::1", "http://[fd00::1]:8080"),
    ],
)
def test_the_url_is_one_that_can_be_opened_here(host: str, url: str) -> None:
    assert config.url(config.Config(worker_host=host)) == url


def test_uv_is_less_patient_than_by_itself_unless_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("UV_HTTP_RETRIES", raising=False)
    assert config.uv_environment()["UV_HTTP_RETRIES"] == "1"
    assert config.build_environment()["UV_HTTP_RETRIES"] == "1"
    monkeypatch.setenv("UV_HTTP_RETRIES", "5")
    assert config.uv_environment()["UV_HTTP_RETRIES"] == "5"
