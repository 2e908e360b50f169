"""Registers the defaults."""
