"""Whether an engine folder is whole and unchanged, weights included; needs no machine that could run it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tilecompile.runtime.folder.contract import check_contract
from tilecompile.runtime.folder.manifest import Manifest, check_same, read_manifest
from tilecompile.runtime.folder.tables import Tables, load_tables


@dataclass(frozen=True)
class Checked:
    """An engine whose files are what they should be: its manifest and tables, files, bytes, seconds that it took."""

    manifest: Manifest
    tables: Tables
    files: int
    bytes: int
    seconds: float


def check_engine(folder: str | Path) -> Checked:
    """Checks sizes and hashes of all files (the weights' chunks too), the tables' ranges, and the kernel's contract.

    EngineError in one line for the first thing that is wrong. Runs nothing of the engine.
    """
    begin = time.perf_counter()
    manifest = read_manifest(folder, check_weights=True)
    tables = load_tables(manifest)
    if manifest.has_kernel:
        check_contract(manifest, tables)
    check_same(manifest)
    sizes = [int(entry["bytes"]) for entry in manifest.data["files"].values()]
    return Checked(manifest, tables, len(sizes), sum(sizes), time.perf_counter() - begin)
