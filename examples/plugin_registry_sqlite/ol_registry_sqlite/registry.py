"""Handlers as rows of one table: a name, a version and a bundle."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from olcore import bundles
from olcore.errors import (
    ConflictError,
    HandlerNotFoundError,
    RegistryError,
    RegistryUnavailableError,
)
from olcore.interfaces import HandlerVersion, Registry, RegistryContext

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ol_registry_sqlite.plugin import SqliteSettings

_TABLE = """
CREATE TABLE IF NOT EXISTS handlers (
    name TEXT PRIMARY KEY, version TEXT NOT NULL, bundle BLOB NOT NULL
)
"""


class SqliteRegistry(Registry):
    """The bundles in one database."""

    # A lookup reads a file, so the core may ask only every ``registry_cache_ms``.
    remote = True
    writable = True

    def __init__(self, context: RegistryContext, settings: SqliteSettings) -> None:
        self._file = Path(settings.file or context.registry_dir / "handlers.sqlite")
        self._timeout_s = context.timeout_s
        self._bounds = bundles.Bounds(
            max_mb=context.max_bundle_mb, max_files=context.max_bundle_files
        )

    async def start(self) -> None:
        await asyncio.to_thread(self._start)

    async def close(self) -> None:
        """Nothing stays open between calls."""

    # sqlite3 blocks, so every call goes to a thread: the worker's event loop must never wait.

    async def lookup(self, name: str) -> HandlerVersion:
        return await asyncio.to_thread(self._lookup, name)

    async def pull(self, version: HandlerVersion, target: Path) -> HandlerVersion:
        return await asyncio.to_thread(self._pull, version.name, target)

    async def names(self) -> Sequence[HandlerVersion]:
        return await asyncio.to_thread(self._names)

    async def publish(
        self, name: str, bundle: Path, if_version: str | None = None
    ) -> HandlerVersion:
        return await asyncio.to_thread(self._publish, name, bundle, if_version)

    async def remove(self, name: str, if_version: str | None = None) -> None:
        await asyncio.to_thread(self._remove, name, if_version)

    def _start(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction() as database:
            database.execute(_TABLE)

    def _lookup(self, name: str) -> HandlerVersion:
        with self._transaction() as database:
            return HandlerVersion(name=name, version=self._version(database, name))

    def _pull(self, name: str, target: Path) -> HandlerVersion:
        with self._transaction() as database:
            version = self._version(database, name)
            [bundle] = database.execute(
                "SELECT bundle FROM handlers WHERE name = ?", (name,)
            ).fetchone()
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(bundle)
            # Refuses what leads out of the folder, what is damaged and what is too big.
            bundles.unpack(Path(file.name), target, self._bounds, f"handler {name!r}")
        return HandlerVersion(name=name, version=version)

    def _names(self) -> Sequence[HandlerVersion]:
        with self._transaction() as database:
            rows = database.execute("SELECT name, version FROM handlers").fetchall()
        # Sorted here: SQL's order is not Python's for every letter.
        return sorted(
            (HandlerVersion(name=name, version=version) for name, version in rows),
            key=lambda found: found.name,
        )

    def _publish(self, name: str, bundle: Path, if_version: str | None) -> HandlerVersion:
        data = bundle.read_bytes()
        version = hashlib.sha256(data).hexdigest()
        # Looking and writing in one transaction: of two who publish at once, one is told that it comes too late.
        with self._transaction() as database:
            self._check(database, name, if_version)
            database.execute(
                "INSERT OR REPLACE INTO handlers VALUES (?, ?, ?)", (name, version, data)
            )
        return HandlerVersion(name=name, version=version)

    def _remove(self, name: str, if_version: str | None) -> None:
        with self._transaction() as database:
            self._version(database, name)
            self._check(database, name, if_version)
            database.execute("DELETE FROM handlers WHERE name = ?", (name,))

    def _version(self, database: sqlite3.Connection, name: str) -> str:
        row = database.execute("SELECT version FROM handlers WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise HandlerNotFoundError(
                f"no handler {name!r} in {str(self._file)!r}",
                hint=f"add it with: olcore upload --handler {name} --file FOLDER",
            )
        version: str = row[0]
        return version

    def _check(self, database: sqlite3.Connection, name: str, if_version: str | None) -> None:
        if if_version is None:
            return
        try:
            version = self._version(database, name)
        except HandlerNotFoundError:
            version = ""
        if version != if_version:
            raise ConflictError(
                f"handler {name!r} has version {version!r}, not {if_version!r}",
                details={"version": version},
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Open the database for one transaction; SQLite's errors stop here."""
        try:
            # The timeout bounds how long another program's lock is waited for.
            with (
                closing(sqlite3.connect(self._file, timeout=self._timeout_s)) as database,
                database,
            ):
                database.execute("BEGIN IMMEDIATE")
                yield database
        except sqlite3.OperationalError as error:
            raise RegistryUnavailableError(
                f"{str(self._file)!r}: {error}", retry_after_s=1.0
            ) from error
        except sqlite3.Error as error:
            raise RegistryError(f"{str(self._file)!r}: {error}") from error
