"""A cache of results that take long to make, under keys that are known before they are made.

Entries are stored in $TILECOMPILE_CACHE, or else in the user's cache folder. They can be deleted at any time: what is
missing or damaged, or can't be read or written, is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path


def folder() -> Path:
    """The folder that holds the entries."""
    stated = os.environ.get("TILECOMPILE_CACHE")
    if stated:
        return Path(stated)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tilecompile"


def key_of(parts: Iterable[str]) -> str:
    """The key of a result that is made of these texts: a sha256 in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(f"{len(data)} ".encode())
        digest.update(data)
    return digest.hexdigest()


def cached(kind: str, key: str, make: Callable[[], bytes]) -> bytes:
    """The stored result of `make` under this key; where there is none, makes and stores it."""
    path = folder() / kind / key[:2] / key
    try:
        stored = path.read_bytes()
        data = stored[32:]
        if hashlib.sha256(data).digest() == stored[:32]:
            return data
    except OSError:
        pass
    data = make()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(data).digest() + data)
        os.replace(name, path)
    return data
