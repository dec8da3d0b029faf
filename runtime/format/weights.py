"""Weights in a pool: how matrices, panels and tiles are laid out, and the bytes that they take."""

from __future__ import annotations

from tilecompile.runtime.format.constants import DTYPE_BYTES

SCALE_BLOCK = 128
"""Rows and columns of a block of an fp8 matrix that has one f32 scale."""

E4M3_MAX = 448.0
"""Largest number of e4m3, the number type of fp8 matrices."""

PANEL = 16
"""Rows that a weight tile stores together: rows of each matrix are padded to whole panels."""

LAYOUTS = ("rows", "fragments")
"""How the panels of a weight tile are laid out: for CPUs column by column (`targets/tiles.py`), for GPUs as the
operands of their matrix instructions (`targets/cuda/fragments.py`)."""

FRAGMENT_BYTES = 512
"""Bytes of a panel that a warp takes at once, 16 a lane: the k-blocks of layout "fragments"."""

FRAGMENT_COLS = {"bf16": 16, "fp8": 32}
"""Columns of a k-block, by the types that layout "fragments" has."""

RESIDUES = 8
"""Partial sums of a row in layout "fragments", one a warp of bodies: k-block b is added to sum b mod RESIDUES."""


def matrix_bytes(rows: int, cols: int, dtype: str) -> int:
    """Bytes of a weight matrix as a checkpoint has it, with the scales of its blocks if it is fp8."""
    scales = -(-rows // SCALE_BLOCK) * -(-cols // SCALE_BLOCK) * 4 if dtype == "fp8" else 0
    return rows * cols * DTYPE_BYTES[dtype] + scales


def panel_bytes(cols: int, dtype: str) -> int:
    """Bytes of a panel of a weight tile; in fp8 the scale of each block of columns follows, f32."""
    return PANEL * cols * DTYPE_BYTES[dtype] + (-(-cols // SCALE_BLOCK) * 4 if dtype == "fp8" else 0)


def scale_count(cols: int, col_begin: int) -> int:
    """Blocks of an fp8 matrix that a panel of `cols` columns from `col_begin` on meets: its scales."""
    return -(-(col_begin % SCALE_BLOCK + cols) // SCALE_BLOCK)


def tile_bytes(panels: int, cols: int, col_begin: int, dtype: str, layout: str) -> int:
    """Bytes of a weight tile of `panels` panels.

    In fragments, panels are whole k-blocks; in fp8 the scales of all panels come first, f32, in whole k-blocks too.
    """
    if layout == "rows":
        return panels * panel_bytes(cols, dtype)
    scales = panels * scale_count(cols, col_begin) * 4 if dtype == "fp8" else 0
    return (panels * -(-cols // FRAGMENT_COLS[dtype]) + -(-scales // FRAGMENT_BYTES)) * FRAGMENT_BYTES
