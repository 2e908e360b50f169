"""A serverless worker platform whose every backend is a plugin."""

from importlib.metadata import PackageNotFoundError, version

from olcore.hookspecs import hookimpl

try:
    __version__ = version("olcore")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0"

__all__ = ["__version__", "hookimpl"]
