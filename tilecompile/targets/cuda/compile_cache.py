"""What took long to make, kept from one compilation to the next, under a key that is known before it is made.

Entries lie in $TILECOMPILE_CACHE, or else in the user's cache folder. They can be deleted at any time, by anyone: what
is damaged or can't be read or written is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path


def folder() -> Path:
    """Where the entries lie."""
    stated = os.environ.get("TILECOMPILE_CACHE")
    if stated:
        return Path(stated)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tilecompile"


def key_of(parts: Iterable[str]) -> str:
    """The key of what is made of these texts."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(f"{len(data)} ".encode())
        digest.update(data)
    return digest.hexdigest()


def cached(kind: str, key: str, make: Callable[[], bytes]) -> bytes:
    """What `make` made when it was last asked for under this key, or makes now."""
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
