"""The settings of the ``s3`` registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

_HIDDEN = frozenset(("key", "secret", "options"))


class S3Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where handlers are stored, and how to get there; never prints a secret."""

    url: str = ""
    """``s3://BUCKET/PREFIX``, or what another fsspec backend understands: ``gs://``, ``az://``, ``file://``, ``memory://``."""
    endpoint: str = ""
    """The server's address when it is not Amazon's, such as ``http://127.0.0.1:9000``."""
    key: str = ""
    """Access key; empty means the usual AWS chain (environment, ~/.aws, instance role)."""
    secret: str = ""
    """Secret key; must be there when ``key`` is."""
    region: str = ""
    """Empty means what the AWS chain says."""
    verify: bool | str = True
    """Whether to check the server's certificate; a text is a file of certificates to check it with."""
    options: dict[str, Any] = {}
    """More storage options for the fsspec backend, such as ``{"token": "..."}`` for gcsfs."""
    server: str = "nanio"
    """What ``olcore registry`` starts: ``nanio``, ``minio``, ``weed``, or a command with {host}, {port} and {folder} in it."""

    def __repr__(self) -> str:
        shown = {
            name: "***" if name in _HIDDEN and getattr(self, name) else getattr(self, name)
            for name in self.__struct_fields__
        }
        return f"S3Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def secrets(self) -> list[str]:
        """List the texts that must not come out anywhere."""
        values = [self.key, self.secret, *_texts(self.options)]
        return [value for value in values if len(value) > 3]  # noqa: PLR2004  # "eu" and such are in options too


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
