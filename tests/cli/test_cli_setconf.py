"""olcore setconf."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Cli
from tests.cli.test_cli_new import no_room


def test_an_object_is_merged_and_the_changed_keys_are_said(made: Cli) -> None:
    out = made.ok("setconf", '{"limits": {"memory_mb": 256}, "cors": true, "max_queue": 100}')
    assert out == "cors: false -> true\nlimits.memory_mb: 128 -> 256\n"
    assert made.configured()["limits"]["memory_mb"] == 256
    assert made.configured()["limits"]["timeout_s"] == 30.0


def test_pairs_are_merged_as_json_or_else_as_text(made: Cli) -> None:
    made.ok("setconf", "limits.memory_mb=256", "limits.tmp_mb=1", "cluster_name=one", "cors=true")
    configured = made.configured()
    assert configured["limits"]["memory_mb"] == 256
    assert configured["limits"]["tmp_mb"] == 1
    assert (configured["cluster_name"], configured["cors"]) == ("one", True)


def test_null_takes_a_key_back_to_its_default(made: Cli) -> None:
    made.ok("setconf", '{"max_queue": 5}')
    assert made.ok("setconf", '{"max_queue": null}') == "max_queue: 5 -> 100\n"
    assert "max_queue" not in made.configured()
    assert made.ok("setconf", "max_queue=null") == "nothing changed\n"


def test_a_secret_is_not_said(made: Cli) -> None:
    assert made.ok("setconf", "api_key=hush") == 'api_key: "" -> ***\n'
    inner = {"s3": {"options": {"client": {"session_token": "hush", "tries": [1]}}}}
    said = made.ok("setconf", json.dumps(inner))
    assert said == 's3.options.client: null -> {"session_token": "***", "tries": [1]}\n'
    assert "hush" not in made.ok("setconf", "s3.options.client=null")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('{"cors": tru}', "not JSON: Expecting value at line 1 column 10"),
        ("[1]", "expected a JSON object, got list"),
        ("cors", "not JSON: Expecting value at line 1 column 1"),
        ("=1", "'=1' is not KEY=VALUE"),
        ('{"sandbx": "sock"}', "unknown key 'sandbx'\nhint: did you mean 'sandbox'?"),
        ("limits.memory=1", "at `$.limits`: unknown key 'memory'\nhint: did you mean 'memory_mb'?"),
        ("pretended.sizes=1", "unknown key 'sizes'\nhint: did you mean 'size'?"),
        ("limits.memory_mb=much", "Expected `int`, got `str` - at `$.limits.memory_mb`"),
        ("worker_port=70000", "Expected `int` <= 65535 - at `$.worker_port`"),
        ("pretended.size=big", "Expected `int`, got `str` - at `$.pretended.size`"),
        ("limits=1", "Expected `object`, got `int` - at `$.limits`"),
        ("registry=remote", "'remote' is OpenLambda's\nhint: here it is 's3'"),
        (
            'Registry_Server="a:1"',
            "'Registry_Server' is a key of OpenLambda\nhint: here it is 's3.endpoint'",
        ),
        ("sandbox=gvisor", "no plugin offers the sandbox 'gvisor'; installed: "),
        ("sandbox=gvisor", "hint: pip install ol-sandbox-gvisor"),
        ("import_cache=forest", "hint: pip install ol-cache-forest"),
        ("sandbox=lifo", "'lifo' is a scheduler, not a sandbox; installed: "),
    ],
)
def test_what_is_wrong_is_refused_with_the_way_out_and_nothing_is_written(
    made: Cli, change: str, said: str
) -> None:
    before = made.template.read_bytes()
    refused = made("setconf", change)
    assert refused.code == 1
    assert said in refused.err
    assert made.template.read_bytes() == before


def test_a_file_that_cannot_be_written_stays_as_it_was(made: Cli) -> None:
    before = made.template.read_bytes()
    with no_room():
        said = made("setconf", "max_queue=1")
    assert (said.code, said.out) == (1, "")
    assert "cannot write" in said.err
    assert made.template.read_bytes() == before
    assert [each.name for each in made.template.parent.iterdir()] == ["template.json"]


def test_without_a_change_the_usage_is_said(made: Cli) -> None:
    said = made("setconf")
    assert said.code == 2
    assert "hint: olcore setconf --help" in said.err


def test_without_a_cluster_the_command_that_makes_one_is_said(cli: Cli) -> None:
    said = cli("setconf", "cors=true")
    assert said.code == 1
    assert "is no cluster" in said.err
    assert "hint: olcore new --cluster my-cluster" in said.err


def test_another_key_can_be_set_while_the_chosen_sandbox_has_yet_to_be_installed(made: Cli) -> None:
    made.template.write_text('{"sandbox": "gvisor"}')
    assert made.ok("setconf", "max_queue=1") == "max_queue: 100 -> 1\n"


def test_the_section_of_a_plugin_that_is_gone_stays_and_cannot_be_written(made: Cli) -> None:
    made.template.write_text('{"sandbox": "pretended", "vm": {"kernel": "x"}}')
    made.ok("setconf", "max_queue=1")
    assert made.configured()["vm"] == {"kernel": "x"}
    assert "unknown key 'vm'" in made("setconf", "vm.kernel=y").err
    made.ok("setconf", "vm=null")
    assert "vm" not in made.configured()
