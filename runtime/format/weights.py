"""Weights in a pool: how panels and tiles are laid out. The formats of numbers are in `runtime/weight_formats.py`."""

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

FRAGMENT_COLS = {name: FRAGMENT_BYTES // (PANEL * DTYPE_BYTES[name]) for name in ("bf16", "fp8")}
"""Columns of a k-block, by the types that layout "fragments" has."""

RESIDUES = 8
"""Partial sums of a row in layout "fragments", one a warp of bodies: k-block b is added to sum b mod RESIDUES."""
