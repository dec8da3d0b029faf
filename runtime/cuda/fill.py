"""Random weights and caches, drawn on the devices: for measurements without a checkpoint.

Numbers are uniform, with the variance that keeps sums near 1; the same seed gives the same numbers for the
same plan only. The results of such an engine are finite and mean nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.folder.rows import expanded, owners
from tilecompile.runtime.folder.tables import Table, Tables
from tilecompile.runtime.format import ARENAS, DEVICE_FILL, DTYPES, FILL_F32, NONE, PANEL
from tilecompile.runtime.weight_formats import FORMATS

PIECE = 1 << 20
"""Bytes that one block of the kernel fills."""

Numbers = npt.NDArray[Any]


def weight_fills(tables: Tables, device: int, pool: int) -> Table:
    """DeviceFill records for the weights of a device whose pool begins at an address.

    EngineError for weights of a format that GPUs can't draw.
    """
    weights, buffers, tiles = tables["weights"], tables["buffers"], tables["tiles"]
    tiles = tiles[tiles["device"] == device]
    dtype = weights["dtype"][tiles["tensor"]]
    panels, cols, col_begin = _panels(tiles), *(tiles[key].astype(np.int64) for key in ("cols", "col_begin"))
    most = np.sqrt(3.0 / tiles["cols"])
    scales, kind = np.zeros(len(tiles), np.int64), np.zeros(len(tiles), np.int64)
    limit, scale = most.copy(), most.copy()
    for name, stored in FORMATS.items():
        mine = dtype == stored.code
        if mine.any() and (stored.fill is None or stored.scale != "f32" or stored.matrix_scale):
            raise EngineError(f"weights are {name}, and GPUs draw no such numbers")
        scales[mine] = stored.head_bytes(panels[mine], cols[mine], col_begin[mine])
        kind[mine] = stored.fill or 0
        if stored.largest is not None:
            limit[mine], scale[mine] = stored.largest, most[mine] / stored.largest
    # For each copy of a tile: its scales, if any, then the rest.
    copies = tiles["copies"].astype(np.int64)
    tile, copy = owners(copies), expanded(0, copies)
    size = tiles["bytes"].astype(np.int64)
    begin = pool + (tiles["offset"].astype(np.int64)[tile] + copy * size[tile])
    constants = buffers[(buffers["device"] == device) & (buffers["arena"] == ARENAS.index("weight"))]
    row = constants["rows"] == 1
    return _records(
        np.append(_pairs(begin, begin + scales[tile]), pool + constants["offset"].astype(np.int64)),
        np.append(_pairs(scales[tile], (size - scales)[tile]), -(-constants["bytes"].astype(np.int64) // 16) * 16),
        np.append(_pairs(np.full(len(tile), FILL_F32), kind[tile]), _fill(constants["dtype"])),
        np.append(_pairs(scale[tile], -limit[tile]), np.where(row, 0.5, -1.0)),
        np.append(_pairs(scale[tile], limit[tile]), np.where(row, 1.5, 1.0)),
    )


def cache_fills(tables: Tables, device: int, cache: int) -> Table:
    """DeviceFill records for the attention caches of a device whose cache arena begins at an address."""
    buffers = tables["buffers"]
    mine = buffers[(buffers["device"] == device) & (buffers["arena"] == ARENAS.index("cache"))]
    size = -(-mine["bytes"].astype(np.int64) // 16) * 16
    most = np.full(len(mine), 1.7)
    return _records(cache + mine["offset"].astype(np.int64), size, _fill(mine["dtype"]), -most, most)


def _fill(dtype: Numbers) -> Numbers:
    """How the elements of buffers are drawn, by index into DTYPES."""
    return np.array([FORMATS[name].fill if name in FORMATS else FILL_F32 for name in DTYPES])[dtype]


def _panels(tiles: Table) -> Numbers:
    """Panels of one copy of each tile."""
    rows = tiles["row_end"].astype(np.int64) - tiles["row_begin"]
    matrices = np.where(tiles["gathered"], 1, tiles["end"].astype(np.int64) - tiles["begin"])
    return np.asarray(-(-rows // PANEL) * np.where(tiles["second"] != NONE, 2, 1) * matrices)


def _pairs(first: Numbers, second: Numbers) -> Numbers:
    """The elements of both arrays alternately, from the first's first on."""
    return np.stack([first, second], axis=1).reshape(-1)


def _records(begin: Numbers, size: Numbers, kind: Numbers, low: Numbers, high: Numbers) -> Table:
    """Records of PIECE bytes at most."""
    count = -(-size // PIECE)
    of, at = owners(count), expanded(0, count) * PIECE
    out = np.zeros(max(1, len(of)), DEVICE_FILL.dtype)
    found = out[: len(of)]
    found["target"], found["bytes"] = begin[of] + at, np.minimum(PIECE, size[of] - at)
    found["type"], found["low"], found["high"] = kind[of], low[of], high[of]
    out["stream"] = np.arange(len(out))
    return out
