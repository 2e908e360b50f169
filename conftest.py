"""Decides what happens to tests whose machine lacks something: a laptop skips them, CI runs them whatever comes of it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Generator

# No test asserts on time, and hypothesis would: for each example, and for how long it takes to think of them.
settings.register_profile(
    "untimed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")

_NOTHING_MAY_BE_SKIPPED = os.environ.get("OLCORE_REQUIRE_KERNEL") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests of the kernel for who is not root, unless ``OLCORE_REQUIRE_KERNEL=1``."""
    if _NOTHING_MAY_BE_SKIPPED or (sys.platform == "linux" and os.geteuid() == 0):
        return
    for item in items:
        if item.get_closest_marker("kernel"):
            item.add_marker(pytest.mark.skip(reason="needs root and Linux namespaces"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a test that skips itself fail with ``OLCORE_REQUIRE_KERNEL=1``; an expected failure is none that skips."""
    report = yield
    if _NOTHING_MAY_BE_SKIPPED and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, where nothing may be: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Do the same for a file that skips all its tests."""
    report = yield
    if _NOTHING_MAY_BE_SKIPPED and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, where nothing may be: {report.longrepr}"
    return report
