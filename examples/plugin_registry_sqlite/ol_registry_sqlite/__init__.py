"""A handler registry of olcore in one SQLite file."""
