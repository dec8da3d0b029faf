"""Damage to engine folders: altered tables and manifests, with hashes that agree again, so that later checks are met.

Copies share their files with the original by hard links, so a file is altered by putting another in its place.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tilecompile.runtime.folder.files import file_entry
from tilecompile.runtime.folder.manifest import manifest_sha256


def copy(engine: Path, folder: Path) -> Path:
    """A copy of an engine to damage."""
    shutil.copytree(engine, folder, copy_function=os.link)
    return folder


def put(path: Path, content: bytes) -> None:
    """Puts a new file in the place of one."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def flip(path: Path, position: int, mask: int = 1) -> None:
    """Alters one byte of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= mask
    put(path, bytes(content))


def edit_manifest(engine: Path, change: Callable[[dict[str, Any]], Any], rehash: bool = True) -> None:
    """Alters engine.json."""
    data = json.loads((engine / "engine.json").read_text())
    change(data)
    if rehash:
        data["manifest_sha256"] = manifest_sha256(data)
    put(engine / "engine.json", json.dumps(data).encode())


def rehash(engine: Path, *names: str) -> None:
    """Makes the manifest agree with altered files."""
    entries = {name: file_entry(engine / name, name.startswith("weights/")) for name in names}
    edit_manifest(engine, lambda data: data["files"].update(entries))


def table(engine: Path, name: str) -> np.ndarray:
    """A table of an engine."""
    out: np.ndarray = np.load(engine / "tables" / f"{name}.npy")
    return out


def edit_table(engine: Path, name: str, change: Callable[[np.ndarray], Any]) -> Path:
    """Alters a table in place, or replaces it by what `change` returns; hashes agree afterwards."""
    old = table(engine, name)
    new = change(old)
    content = io.BytesIO()
    np.save(content, old if new is None else new)
    put(engine / "tables" / f"{name}.npy", content.getvalue())
    rehash(engine, f"tables/{name}.npy")
    return engine
