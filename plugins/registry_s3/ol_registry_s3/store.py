"""The objects at one fsspec URL, as blocking calls that are each over in time."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import uuid
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import msgspec

from ol_registry_s3.faults import Missing, Nowhere

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ol_registry_s3.settings import S3Settings

S3_PROTOCOLS = frozenset(("s3", "s3a"))
_LOCAL = frozenset(("file", "local"))
# Where a put becomes visible whole; elsewhere an object arrives under another name, and is then renamed.
_ATOMIC_PUT = S3_PROTOCOLS | {"gs", "gcs", "az", "abfs", "abfss", "oss", "oci"}
_ARRIVING = ".arriving-"
_SAFE = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,128}")
_IDENTITY = ("size", "mtime", "created", "LastModified", "last_modified", "ino")
_ATTEMPTS = 2
# What they log for debugging has keys, signatures and whole answers in it.
_TALKATIVE = ("aiobotocore", "botocore", "fsspec", "s3fs")
_CHUNK_BYTES = 1 << 40

# One for the whole process: two clients of one store must not both find that a condition holds. Between processes only
# a store that checks conditions itself (S3 does) can decide.
_WRITING = threading.Lock()


class Object(msgspec.Struct, frozen=True):
    """One stored object."""

    name: str
    version: str
    size: int
    etag: str
    """As the store spells it; empty where it has none."""


def protocol_of(url: str) -> str:
    """Say which fsspec backend a URL names; a path without one is ``file``."""
    return url.partition("://")[0] if "://" in url else "file"


def shown(url: str) -> str:
    """Leave the user and password out of a URL."""
    return re.sub(r"(?<=://)[^/@]*@", "", url)


def storage_options(settings: S3Settings, timeout_s: float) -> dict[str, Any]:
    """Say in fsspec's words what the settings say."""
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if protocol_of(settings.url) in S3_PROTOCOLS:
        client: dict[str, Any] = {"verify": settings.verify}
        if settings.region:
            client["region_name"] = settings.region
        options |= {
            "client_kwargs": client,
            "config_kwargs": {
                "connect_timeout": timeout_s,
                "read_timeout": timeout_s,
                # s3fs tries again by itself; both together would multiply.
                "retries": {"total_max_attempts": 1},
            },
        }
        given = {
            "endpoint_url": settings.endpoint,
            "key": settings.key,
            "secret": settings.secret,
        }
        options |= {name: value for name, value in given.items() if value}
    return options | settings.options


class Store:
    """What is stored below one URL. Every method blocks, and raises what the backend raises."""

    def __init__(self, settings: S3Settings, timeout_s: float) -> None:
        self._protocol = protocol_of(settings.url)
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.INFO)
        options = storage_options(settings, timeout_s)
        filesystem, root = fsspec.core.url_to_fs(settings.url, **options)
        self._fs: Any = filesystem
        self._root = root.rstrip("/")
        if self._protocol in S3_PROTOCOLS:
            self._fs.retries = _ATTEMPTS

    def find(self, key: str) -> Object:
        """Look at one object.

        Raises:
            Missing: There is none.
        """
        try:
            info = self._fs.info(self._path(key))
        except FileNotFoundError:
            self._check_folder()
            raise
        if info.get("type") != "file":
            raise Missing
        return _object(info)

    def fetch(self, key: str, target: Path) -> None:
        """Copy one object to the file *target*."""
        if self._protocol == "memory":
            # Two readers of one object would share its position.
            target.write_bytes(self._fs.cat_file(self._path(key)))
        else:
            self._fs.get_file(self._path(key), str(target))

    def listed(self) -> Sequence[Object]:
        """List every object."""
        try:
            found = self._fs.ls(self._root, detail=True)
        except FileNotFoundError:
            # A prefix is there when something is in it. A missing bucket is told apart by the caller's table.
            self._check_bucket()
            self._check_folder()
            return []
        objects = [_object(info) for info in found if info.get("type") == "file"]
        # Without etags, what a listing says about an object is not all that is known.
        return [each if each.etag else self.find(each.name) for each in objects]

    def store(self, key: str, source: Path, condition: Mapping[str, str]) -> None:
        """Put *source* in place as one object, all of it or nothing; S3 checks *condition* itself."""
        path = self._path(key)
        if self._protocol in _ATOMIC_PUT:
            extra = {**condition, "chunksize": _CHUNK_BYTES} if self.checks_conditions else {}
            self._fs.put_file(str(source), path, **extra)
            return
        arriving = self._path(f"{_ARRIVING}{uuid.uuid4().hex}")
        self._check_folder()
        self._fs.makedirs(self._root, exist_ok=True)
        try:
            self._fs.put_file(str(source), arriving)
            self._fs.mv(arriving, path)
        except BaseException:
            with contextlib.suppress(Exception):
                self._fs.rm_file(arriving)
            raise

    @property
    def checks_conditions(self) -> bool:
        """Whether ``store`` can be given S3's conditions."""
        return self._protocol in S3_PROTOCOLS

    def remove(self, key: str) -> None:
        """Remove one object."""
        self._fs.rm_file(self._path(key))

    @staticmethod
    def writing() -> threading.Lock:
        """Return the lock to hold between looking at an object and writing it."""
        return _WRITING

    def make_bucket(self) -> None:
        """Make the bucket of an S3 URL, unless it is there."""
        bucket = self._root.partition("/")[0]
        try:
            self._fs.call_s3("head_bucket", Bucket=bucket)
        except FileNotFoundError:
            self._fs.call_s3("create_bucket", Bucket=bucket)

    def close(self) -> None:
        """Let go of connections."""
        session = getattr(self._fs, "_s3", None)
        if session is not None:
            with contextlib.suppress(Exception):  # it is going away anyhow
                self._fs.close_session(self._fs.loop, session)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _check_folder(self) -> None:
        # What is mounted there is away: its handlers are not gone, and nothing may be written below it.
        if self._protocol in _LOCAL and not self._fs.isdir(self._root):
            raise Nowhere(self._root)

    def _check_bucket(self) -> None:
        if self._protocol in S3_PROTOCOLS:
            bucket = self._root.partition("/")[0]
            self._fs.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)


def _object(info: Mapping[str, Any]) -> Object:
    etag = str(info.get("ETag") or info.get("etag") or info.get("generation") or "")
    bare = etag.removeprefix("W/").strip('"')
    if not bare:
        etag = ""  # nanio says '""' of what somebody else has put into its folder
    if not _SAFE.fullmatch(bare):
        known = etag or [info.get(field) for field in _IDENTITY]
        bare = blake2b(repr(known).encode(), digest_size=16).hexdigest()
    name = str(info["name"]).rstrip("/").rpartition("/")[2]
    return Object(name=name, version=bare, size=int(info.get("size") or 0), etag=etag)


def why_unusable(settings: S3Settings) -> str | None:
    """Say what is missing for the URL to be used: itself, or a package."""
    if not settings.url:
        return (
            "s3.url is not set: give it a URL such as s3://BUCKET/PREFIX, or run 'olcore registry'"
        )
    if bool(settings.key) != bool(settings.secret):
        return "s3.key and s3.secret belong together, and one of them is empty"
    if settings.endpoint and "://" not in settings.endpoint:
        return f"s3.endpoint {settings.endpoint!r} is no URL: http://HOST:PORT"
    if isinstance(settings.verify, str) and not Path(settings.verify).exists():
        return f"s3.verify {settings.verify!r} is no file of certificates"
    fault = _why_nowhere(settings.url)
    return f"s3.url {shown(settings.url)!r}{fault}" if fault else None


def _why_nowhere(url: str) -> str | None:
    protocol = protocol_of(url)
    path = url.partition("://")[2] if "://" in url else url
    if protocol in S3_PROTOCOLS and path[:1] in {"", "/"}:
        return " names no bucket: s3://BUCKET/PREFIX"
    # Each program would find another folder there.
    if protocol in _LOCAL and not path.startswith("/"):
        return " is no absolute path: file:///FOLDER"
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        return f": {error}".rstrip(".")
    return None
