"""Decides what happens to tests whose machine lacks something: a laptop skips them, CI runs them whatever comes of it."""

from __future__ import annotations

import os
import sys

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests of the kernel for who is not root, unless ``OLCORE_REQUIRE_KERNEL=1``."""
    if os.environ.get("OLCORE_REQUIRE_KERNEL") == "1" or (
        sys.platform == "linux" and os.geteuid() == 0
    ):
        return
    for item in items:
        if item.get_closest_marker("kernel"):
            item.add_marker(pytest.mark.skip(reason="needs root and Linux namespaces"))
