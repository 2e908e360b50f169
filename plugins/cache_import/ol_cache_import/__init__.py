"""The import cache of olcore: a tree of zygotes that have imported packages."""
