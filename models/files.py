"""Files of a checkpoint folder, read with errors that say what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tilecompile.runtime.errors import InputError

LFS = b"version https://git-lfs.github.com/spec/"
HEAD = 512
"""Bytes at the begin of a file that show what it is."""


def not_content(path: Path) -> str | None:
    """Why a file isn't what its name promises, in words, or None: a download that was left out, or went wrong.

    OSError if it can't be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return "is empty"
    if head.startswith(LFS):
        return "is a Git LFS pointer, want the file that it stands for (git lfs pull)"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "is a web page, want the file itself"
    return None


def read_text(path: Path) -> str:
    """The text of a file. InputError if it can't be read."""
    try:
        if wrong := not_content(path):
            raise InputError(f"{path}: {wrong}")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path}: can't be read as text: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. InputError if it can't be read or holds something else."""
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: the content is a {type(values).__name__}, want an object")
    return values
