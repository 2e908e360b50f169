"""Looks at what somebody uploads before it is stored, so that what is stored can be run."""

from __future__ import annotations

import ast
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from olcore import bundles
from olcore.errors import BadBundleError, HandlerError, HandlerInvalidError, RegistryError
from olcore.handlers import settings as handler_settings
from olcore.handlers.packages import requirements

if TYPE_CHECKING:
    from olcore.handlers.options import Options

# A tree takes some hundred times the size of its text.
_MAX_PARSED_BYTES = 1 << 20


def check_bundle(bundle: Path, options: Options, what: str) -> None:
    """Check that *bundle* is a handler: safe to unpack, an entry file without syntax errors, settings and packages in order.

    Blocks; what it unpacks is gone when it returns.

    Args:
        bundle: The ``.tar.gz``.
        options: Bounds for its size, and for what its settings may ask for.
        what: What to call it in errors.

    Raises:
        BadBundleError: It is not.
    """
    with tempfile.TemporaryDirectory(prefix="olcore-upload-") as folder:
        code = Path(folder)
        try:
            bundles.unpack(bundle, code, bounds(options), what)
            _check_code(code, options)
        except HandlerError as error:
            said = error.message if error.message.startswith(what) else f"{what}: {error.message}"
            raise BadBundleError(said, hint=error.hint, details=error.details) from error


def pack(file: Path, target: Path, options: Options) -> Path:
    """Make a bundle of a folder at *target*, or take *file* for one; says where the bundle is.

    Raises:
        BadBundleError: It is neither a folder nor a file, or the folder cannot be packed.
    """
    if not file.is_dir():
        if not file.is_file():
            raise BadBundleError(
                f"there is no folder or bundle {str(file)!r}", hint="--file FOLDER or FILE.tar.gz"
            )
        return file
    try:
        bundles.pack(file, target, bounds(options))
    except (HandlerError, RegistryError) as error:
        raise BadBundleError(error.message, hint=error.hint, details=error.details) from error
    return target


def bounds(options: Options) -> bundles.Bounds:
    """Say how big a handler may be."""
    return bundles.Bounds(max_mb=options.max_bundle_mb, max_files=options.max_bundle_files)


def _check_code(code: Path, options: Options) -> None:
    read = handler_settings.read(code, options)
    requirements.read(code)
    _check_syntax(code, read.entry[0])


def _check_syntax(code: Path, entry: str) -> None:
    try:
        if (code / entry).stat().st_size > _MAX_PARSED_BYTES:
            return
        # With the interpreter that olcore runs on; a sandbox may have a newer one, but seldom newer syntax.
        ast.parse((code / entry).read_bytes(), entry)
    except SyntaxError as error:
        raise HandlerInvalidError(f"{entry}, line {error.lineno}: {error.msg}") from error
    except (RecursionError, MemoryError) as error:
        # The parser of CPython says MemoryError when its own stack is full.
        raise HandlerInvalidError(f"{entry} is nested too deeply for Python") from error
    except (ValueError, OSError) as error:
        raise HandlerInvalidError(f"{entry} is no Python file: {error}") from error
