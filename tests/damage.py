"""Damage to engine folders: altered tables and manifests, with hashes that agree again, so that later checks are met."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_engine as fake
import numpy as np

from tilecompile.runtime.files import file_entry


def copy(engine: Path, folder: Path) -> Path:
    """A copy of an engine to damage."""
    shutil.copytree(engine, folder)
    return folder


def table(engine: Path, name: str) -> np.ndarray:
    """A table of an engine."""
    out: np.ndarray = np.load(engine / "tables" / f"{name}.npy")
    return out


def rehash(engine: Path, *names: str) -> None:
    """Makes the manifest agree with altered files."""
    entries = {name: file_entry(engine / name, name.startswith("weights/")) for name in names}
    fake.edit_manifest(engine, lambda data: data["files"].update(entries))


def edit_table(engine: Path, name: str, change: Callable[[np.ndarray], Any]) -> Path:
    """Alters a table in place, or replaces it by what `change` returns; hashes agree afterwards."""
    old = table(engine, name)
    new = change(old)
    np.save(engine / "tables" / f"{name}.npy", old if new is None else new)
    rehash(engine, f"tables/{name}.npy")
    return engine


def flip(path: Path, position: int, bit: int = 0) -> None:
    """Alters one bit of a file."""
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))
