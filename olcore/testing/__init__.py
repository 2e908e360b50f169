"""Shipped for plugin authors: a contract suite for each interface, and fakes that are held to them.

It needs pytest and pytest-asyncio with ``asyncio_mode = "auto"``; nothing that runs in production imports it.
"""
