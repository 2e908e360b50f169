"""The plan of the root file system, without touching the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from ol_sandbox_sock import host, root
from olcore.errors import BackendUnusableError


def layout(base: str = "", prefix: str = "") -> root.Layout:
    return root.Layout(
        base=base,
        interpreter=root.Interpreter("/usr/bin/python3", prefix),
        guest="/src/guest",
        sock="/src/sock",
        packages="/cluster/packages",
        nameservers=("192.0.2.53",),
    )


def described(plan: list[root.Step]) -> list[str]:
    return [step.describe() for step in plan]


def test_the_host_base_shows_usr_and_nothing_private() -> None:
    steps = described(root.plan(layout()))
    assert "bind /usr -> /usr" in steps
    assert "bind /cluster/packages -> /packages" in steps
    sources = {step.source for step in root.plan(layout()) if isinstance(step, root.Bind)}
    for secret in (
        "/root",
        "/home",
        "/var",
        "/etc/shadow",
        "/etc/ssl/private",
        "/etc",
        "/sys",
        "/run",
    ):
        assert secret not in sources


def test_a_prefix_outside_usr_is_bound_at_its_own_place() -> None:
    assert "bind /opt/python -> /opt/python" in described(root.plan(layout(prefix="/opt/python")))


def test_an_image_shows_its_own_folders_but_not_its_dev_or_resolv_conf(tmp_path: Path) -> None:
    for name in ("usr", "var", "dev", "proc", "tmp", "etc", "opt/tool"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "etc/resolv.conf").write_text("nameserver 127.0.0.53\n")
    (tmp_path / "etc/os-release").write_text("ID=debian\n")
    steps = described(root.plan(layout(str(tmp_path))))
    assert f"bind {tmp_path}/usr -> /usr" in steps
    assert f"bind {tmp_path}/var -> /var" in steps
    assert f"bind {tmp_path}/opt/tool -> /opt/tool" in steps
    assert f"bind {tmp_path}/etc/os-release -> /etc/os-release" in steps
    assert "link /bin -> usr/bin" in steps
    assert not any(
        f"{tmp_path}/dev" in step or f"{tmp_path}/etc/resolv.conf" in step for step in steps
    )


def test_resolv_conf_names_the_servers_it_is_given() -> None:
    texts = {step.path: step.text for step in root.plan(layout()) if isinstance(step, root.Text)}
    assert texts["/etc/resolv.conf"] == "nameserver 192.0.2.53\n"
    assert "user:x:1000:1000" in texts["/etc/passwd"]


def test_a_base_without_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendUnusableError, match="has no python3"):
        host.interpreter(str(tmp_path), "")


def test_python_in_a_base_is_found_through_links_that_are_meant_for_inside(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/python3.11").touch()
    (tmp_path / "usr/bin/python3").symlink_to("/etc/alternatives/python3")
    (tmp_path / "etc/alternatives").mkdir(parents=True)
    (tmp_path / "etc/alternatives/python3").symlink_to("/usr/bin/python3.11")
    assert host.interpreter(str(tmp_path), "").executable == "/usr/bin/python3"


def test_a_configured_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendUnusableError, match="/opt/python3"):
        host.interpreter(str(tmp_path), "/opt/python3")


def test_configured_nameservers_win() -> None:
    assert host.nameservers(["192.0.2.1"]) == ("192.0.2.1",)
    assert not any(address.startswith("127.") for address in host.nameservers([]))
