"""The worker's HTTP interface; the only package that knows Falcon."""

from olcore.http.app import App, HttpOptions, make_app
from olcore.http.gate import Gate
from olcore.http.registry import RegistryAccess

__all__ = ["App", "Gate", "HttpOptions", "RegistryAccess", "make_app"]
