"""The tiling of ops that copy rows: ranges of columns, which depend on nothing but how much is moved."""

from __future__ import annotations

import numpy as np

from tilecompile.ir.tiling import Access, Tiling, pieces, split


def by_columns(parts: int, size: int, moved: int, read: tuple[int, int], write: tuple[int, int]) -> Tiling:
    """Ranges of `size` columns for about `parts` tasks; the coordinates are (first, one past the last).

    `read` and `write` are an operand's number and its rows, all of which each task copies; `moved` are the rows that
    are copied, for the cost.
    """
    bounds = split(size, pieces(parts, moved * size))
    lo, hi = bounds[:-1], bounds[1:]
    coords = np.zeros((len(lo), 4), np.int32)
    coords[:, 0], coords[:, 1] = lo, hi
    return Tiling(
        coords=coords,
        reads=(Access(read[0], ((0, read[1]), (lo, hi))),),
        writes=(Access(write[0], ((0, write[1]), (lo, hi))),),
        weights=((),) * len(lo),
        cost=np.asarray((hi - lo) * moved * 8, np.float64),
    )
