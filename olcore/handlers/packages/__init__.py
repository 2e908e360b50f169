"""Gets a handler's wheels in place: read what it asks for, resolve once, install one folder a wheel."""

from olcore.handlers.packages.locks import LOCKS
from olcore.handlers.packages.options import PackageOptions
from olcore.handlers.packages.prepare import Packages, Progress

__all__ = ["LOCKS", "PackageOptions", "Packages", "Progress"]
