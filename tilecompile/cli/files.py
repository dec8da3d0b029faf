"""Files that a command writes for its user: checked before the work, and created atomically."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from tilecompile.runtime.errors import InputError


def check_target(option: str, path: Path) -> None:
    """InputError, with the name of the option, if no file can be created there."""
    folder = path.absolute().parent
    if path.is_dir():
        raise InputError(f"{option} {path}: is a folder, want a file")
    if path.exists() and not path.is_file():
        raise InputError(f"{option} {path}: is a device or a pipe, want a file")
    if not folder.is_dir():
        raise InputError(f"{option} {path}: the folder {path.parent} is not there")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{option} {path}: the folder {path.parent} can't be written to")


def write_whole(option: str, path: Path, text: str) -> None:
    """Writes a file atomically. InputError, with the name of the option, if that fails."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{option} {path}: can't be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
