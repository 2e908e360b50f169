"""What a packages.txt may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from olcore.errors import PackagesError
from olcore.handlers.packages import requirements


def parsed(text: str) -> tuple[str, ...]:
    return requirements.parse(text, "packages.txt")


def test_comments_and_blank_lines_say_nothing() -> None:
    assert parsed("# all\n\nrequests  # http\n  numpy>=2,<3\n") == ("requests", "numpy>=2,<3")


def test_a_line_of_openlambda_names_what_to_install_after_the_colon() -> None:
    assert parsed("PIL:pillow\nyaml : pyyaml==6.0\nrequests:requests") == (
        "pillow",
        "pyyaml==6.0",
        "requests",
    )


def test_extras_and_markers_are_kept() -> None:
    line = 'httpx[http2,cli]>=0.27; python_version >= "3.9"'
    assert parsed(line) == (line,)


def test_a_locked_file_is_read_without_its_hashes() -> None:
    assert parsed(
        "six==1.17.0 \\\n    --hash=sha256:00ff \\\n    --hash=sha256:11ee\nidna==3.4\n"
    ) == (
        "six==1.17.0",
        "idna==3.4",
    )


@pytest.mark.parametrize(
    "line",
    [
        "-r /etc/passwd",
        "--index-url http://10.0.0.1/",
        "-e .",
        "six --global-option=x",
        "./folder",
        "/srv/some.whl",
        "x @ file:///etc/passwd",
        "x@http://169.254.169.254/latest",
        "git+https://example.org/x",
        "http://10.0.0.1/x.whl",
        "${SECRET}",
        "six==${SECRET}",
        "..\\x",
    ],
)
def test_options_paths_urls_and_variables_are_refused(line: str) -> None:
    with pytest.raises(PackagesError) as caught:
        parsed(f"# first\n{line}")
    assert "packages.txt line 2" in caught.value.message
    assert repr(line) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("line", ["six==", "six 1.0", "six=1.0", "six>=1,", "six (==1", "six >"])
def test_half_a_version_is_no_requirement(line: str) -> None:
    with pytest.raises(PackagesError, match="is not a requirement"):
        parsed(line)


@pytest.mark.parametrize(
    "line",
    ["six == 1.16.*, != 1.16.1", "six(>=1!2.0+local-1)", "six===1.0 ; x < '3'", "six[a,b]~=1"],
)
def test_every_form_of_a_version_is_taken(line: str) -> None:
    assert parsed(line) == (line,)


def test_nonsense_is_named_with_its_line() -> None:
    with pytest.raises(PackagesError, match="line 3: '!!' is not a requirement"):
        parsed("six \\\n  ==1.0\n!!")


def test_a_last_line_that_promises_another_is_read() -> None:
    assert parsed("six\nidna \\") == ("six", "idna")


def test_a_very_long_line_is_refused() -> None:
    with pytest.raises(PackagesError, match="line 1 has 5000 characters"):
        parsed("a" * 5000)


def test_a_very_long_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "packages.txt").write_text("six\n" * 100_000)
    with pytest.raises(PackagesError, match="over the limit"):
        requirements.read(tmp_path)


def test_packages_txt_wins_over_requirements_txt(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("numpy\n")
    assert requirements.read(tmp_path) == ("numpy",)
    (tmp_path / "packages.txt").write_text("six\n")
    assert requirements.read(tmp_path) == ("six",)


def test_no_file_wants_nothing(tmp_path: Path) -> None:
    assert requirements.read(tmp_path) == ()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2\n")
    (tmp_path / "packages.txt").symlink_to(tmp_path / "secret")
    assert requirements.read(tmp_path) == ()


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "packages.txt").write_bytes(b"six\n\xff\xfe")
    with pytest.raises(PackagesError, match="not UTF-8 at byte 4"):
        requirements.read(tmp_path)


def test_a_mark_of_the_encoding_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    (tmp_path / "packages.txt").write_bytes(b"\xef\xbb\xbfsix\r\nidna\r\n")
    assert requirements.read(tmp_path) == ("six", "idna")
