"""Registers this plugin's backends with olcore."""
