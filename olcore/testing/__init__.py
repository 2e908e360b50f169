"""Shipped for plugin authors: a contract suite for each interface, and fakes that are held to them.

It needs pytest and pytest-asyncio with ``asyncio_mode = "auto"``; nothing that runs in production imports it.
"""

import pytest

# Before they are imported, so that a failing assertion in a suite shows its values, as in any test file.
pytest.register_assert_rewrite(
    "olcore.testing.attacks", "olcore.testing.rendezvous", "olcore.testing.sandbox"
)
