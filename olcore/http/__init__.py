"""The worker's HTTP interface; the only package that knows Falcon."""

from olcore.http.app import App, HttpOptions, make_app
from olcore.http.gate import Gate

__all__ = ["App", "Gate", "HttpOptions", "make_app"]
