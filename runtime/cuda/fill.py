"""Random weights and caches, drawn on the devices: for measurements of sizes that nobody carries.

Numbers are uniform, with the variance that keeps sums near 1; the same seed gives the same numbers for the
same plan only. Nothing sensible comes out of such an engine, and nothing infinite.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from tilecompile.runtime.format import (
    ARENAS,
    DEVICE_FILL,
    DTYPES,
    FILL_BF16,
    FILL_E4M3,
    FILL_F32,
    FRAGMENT_BYTES,
    NONE,
    PANEL,
    scale_count,
)
from tilecompile.runtime.tables import Table, Tables

E4M3_MAX = 448.0
PIECE = 1 << 20
"""Bytes that one block of the kernel fills."""

_TYPES = {"f32": FILL_F32, "bf16": FILL_BF16, "fp8": FILL_E4M3}


def weight_fills(tables: Tables, device: int, pool: int) -> Table:
    """DeviceFill records for the weights of a device whose pool lies at an address."""
    rows: list[tuple[int, int, int, float, float]] = []
    weights, buffers, tiles = tables["weights"], tables["buffers"], tables["tiles"]
    for t in tiles[tiles["device"] == device]:
        dtype = DTYPES[weights["dtype"][t["tensor"]]]
        most = sqrt(3.0 / int(t["cols"]))
        for copy in range(int(t["copies"])):
            begin, size = pool + int(t["offset"]) + copy * int(t["bytes"]), int(t["bytes"])
            if dtype == "fp8":
                head = _scales(t) * 4
                head = -(-head // FRAGMENT_BYTES) * FRAGMENT_BYTES
                rows.append((begin, head, FILL_F32, most / E4M3_MAX, most / E4M3_MAX))
                rows.append((begin + head, size - head, FILL_E4M3, -E4M3_MAX, E4M3_MAX))
            else:
                rows.append((begin, size, _TYPES[dtype], -most, most))
    for b in buffers[(buffers["device"] == device) & (buffers["arena"] == ARENAS.index("weight"))]:
        low, high = (0.5, 1.5) if b["rows"] == 1 else (-1.0, 1.0)
        rows.append((pool + int(b["offset"]), -(-int(b["bytes"]) // 16) * 16, _TYPES[DTYPES[b["dtype"]]], low, high))
    return _records(rows)


def cache_fills(tables: Tables, device: int, cache: int) -> Table:
    """DeviceFill records for the attention caches of a device whose cache arena lies at an address."""
    buffers = tables["buffers"]
    mine = buffers[(buffers["device"] == device) & (buffers["arena"] == ARENAS.index("cache"))]
    return _records(
        [
            (cache + int(b["offset"]), -(-int(b["bytes"]) // 16) * 16, _TYPES[DTYPES[b["dtype"]]], -1.7, 1.7)
            for b in mine
        ]
    )


def _scales(tile: Table) -> int:
    """How many scales an fp8 tile begins with: see `tilecompile/cuda/pack.py`."""
    panels = -(-int(tile["row_end"] - tile["row_begin"]) // PANEL) * (2 if tile["second"] != NONE else 1)
    matrices = 1 if tile["gathered"] else int(tile["end"] - tile["begin"])
    return panels * matrices * scale_count(int(tile["cols"]), int(tile["col_begin"]))


def _records(rows: list[tuple[int, int, int, float, float]]) -> Table:
    """Records of PIECE bytes at most."""
    pieces = [
        (begin + at, min(PIECE, size - at), kind, 0, low, high)
        for begin, size, kind, low, high in rows
        for at in range(0, size, PIECE)
    ]
    out = np.array(pieces or [(0, 0, 0, 0, 0.0, 0.0)], DEVICE_FILL.dtype)
    out["stream"] = np.arange(len(out))
    return out
