"""Weight formats: how the numbers of weight matrices are stored, in one table.

A format stores a matrix as numbers of some bits, and may divide it into blocks whose numbers share a scale. Whatever
counts, moves or reads weights asks the table: a format is added by a row here and its codec in `targets/codecs.py`.
Every count is a function of rows and columns; those of tiles take numbers or numpy arrays of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.format import (
    DTYPES,
    E4M3_MAX,
    FILL_BF16,
    FILL_E4M3,
    FILL_F32,
    FRAGMENT_BYTES,
    PANEL,
    SCALE_BLOCK,
)

Count = TypeVar("Count", int, npt.NDArray[np.int64])

SCALE_BYTES = {"f32": 4, "e4m3": 1}
"""Bytes of a scale, by its type."""

LINE_BYTES = 64
"""Bytes of a cache line, and of the widest loads."""

ROWS, FRAGMENTS = "rows", "fragments"
"""Layouts of weight tiles (`format.LAYOUTS`): for CPUs and for GPUs."""


@dataclass(frozen=True)
class CudaLoader:
    """How a GPU's bodies take a format: the type in `ops/linear/gpu.cuh`, and the bytes of scratch memory that they
    need for each activation in the form that it is multiplied in."""

    type: str
    activation_bytes: int


@dataclass(frozen=True)
class WeightFormat:
    """A format: its name, its code in the table `weights`, and the bits of a number.

    `block` is the size (rows, columns) of the blocks that share a scale, zeros without scales; `scale` is the scales'
    type, `matrix_scale` that of a further one for the whole matrix. `largest` is the largest number as it is stored,
    for formats with scales. `layouts` are those that tiles can have. `torch` names torch's type that stands for the
    format in a traced model. `exact` is the format of matrices that a model keeps out of this one. `cpp` is the element
    type of CPU bodies, `cuda` the loader of GPU bodies, `fill` how a GPU draws such numbers (`format.FILL_*`).
    """

    name: str
    code: int
    bits: int
    torch: str
    cpp: str
    exact: str
    block: tuple[int, int] = (0, 0)
    scale: str = "f32"
    matrix_scale: str | None = None
    largest: float | None = None
    layouts: tuple[str, ...] = (ROWS,)
    cuda: CudaLoader | None = None
    fill: int | None = None

    @property
    def scaled(self) -> bool:
        """Whether blocks of a matrix have scales."""
        return self.block != (0, 0)

    @property
    def fragment_cols(self) -> int:
        """Columns of a k-block of layout "fragments"."""
        return FRAGMENT_BYTES * 8 // (PANEL * self.bits)

    def number_bytes(self, rows: Count, cols: int) -> Count:
        """Bytes of the numbers of a matrix, in which rows begin at whole bytes."""
        return rows * -(-cols * self.bits // 8)

    def matrix_bytes(self, rows: int, cols: int) -> int:
        """Bytes of a matrix as a checkpoint has it, scales included."""
        size = self.number_bytes(rows, cols)
        if self.scaled:
            size += -(-rows // self.block[0]) * -(-cols // self.block[1]) * SCALE_BYTES[self.scale]
        return size + (SCALE_BYTES[self.matrix_scale] if self.matrix_scale else 0)

    def phase(self, col: Count) -> Count:
        """How far a column is behind the first one of its block."""
        return col % self.block[1] if self.scaled else 0 * col

    def panel_scales(self, cols: Count, col_begin: Count) -> Count:
        """Scales of a panel: those of the blocks that its rows meet in `cols` columns from `col_begin` on.

        Panels begin at multiples of PANEL rows, and blocks have as many, a multiple, or a part.
        """
        if not self.scaled:
            return 0 * cols
        return max(1, PANEL // self.block[0]) * -(-(self.phase(col_begin) + cols) // self.block[1])

    def scale_bytes(self, panels: Count, cols: Count, col_begin: Count) -> Count:
        """Bytes of all scales of so many panels; each panel has the matrix's scale too, where there is one."""
        each = self.panel_scales(cols, col_begin) * SCALE_BYTES[self.scale]
        return panels * (each + (SCALE_BYTES[self.matrix_scale] if self.matrix_scale else 0))

    def head_bytes(self, panels: Count, cols: Count, col_begin: Count) -> Count:
        """Bytes in front of a tile's numbers in layout "fragments": the scales of its panels, in whole k-blocks."""
        return -(-self.scale_bytes(panels, cols, col_begin) // FRAGMENT_BYTES) * FRAGMENT_BYTES

    @property
    def scaled_rows(self) -> bool:
        """Whether each row of a panel has scales of its own."""
        return self.scaled and self.block[0] < PANEL

    @property
    def line_cols(self) -> int:
        """Columns of a panel that are a line of layout "rows"."""
        return LINE_BYTES * 8 // (PANEL * self.bits)

    @property
    def begin_cols(self) -> int:
        """What the column must be a multiple of at which a tile of layout "rows" begins."""
        return self.block[1] if self.scaled_rows else self.line_cols if self.scaled else 1

    @property
    def group_cols(self) -> int:
        """Columns that are stored together in layout "rows": a line of them, or as many as a line of scales is for."""
        if self.scaled_rows:
            return self.block[1] * LINE_BYTES // (PANEL * SCALE_BYTES[self.scale])
        return self.line_cols if self.scaled else 1

    def _rows_bytes(self, panels: int, cols: int, col_begin: int) -> int:
        """Bytes of a tile in layout "rows"."""
        each = SCALE_BYTES[self.matrix_scale] if self.matrix_scale else 0
        if not self.scaled_rows:
            each += self.panel_scales(cols, col_begin) * SCALE_BYTES[self.scale]
        group = self.group_cols * PANEL * self.bits // 8 + (LINE_BYTES if self.scaled_rows else 0)
        return -(-panels * each // LINE_BYTES) * LINE_BYTES + panels * -(-cols // self.group_cols) * group

    def tile_bytes(self, panels: int, cols: int, col_begin: int, layout: str) -> int:
        """Bytes of a weight tile of `panels` panels, in which columns begin at `col_begin` of the matrix.

        The scales of all panels come first; in layout "rows", those that are each row's own come in lines in front of
        the columns that they are for. Panels are whole k-blocks in layout "fragments"; in layout "rows" they are whole
        groups of columns.
        """
        if layout == ROWS:
            return self._rows_bytes(panels, cols, col_begin)
        return self.head_bytes(panels, cols, col_begin) + panels * -(-cols // self.fragment_cols) * FRAGMENT_BYTES


FORMATS: dict[str, WeightFormat] = {}
"""The formats by name."""


def register(row: WeightFormat) -> WeightFormat:
    """Adds a format; name and code must be new."""
    if row.name in FORMATS or row.code in {f.code for f in FORMATS.values()}:
        raise ValueError(f"weight format {row.name} (code {row.code}) is registered twice")
    FORMATS[row.name] = row
    return row


def format_of(code: int) -> WeightFormat:
    """The format with a code of the table `weights`. KeyError for a code that none has."""
    for row in FORMATS.values():
        if row.code == code:
            return row
    raise KeyError(code)


def stack_bytes(shape: tuple[int, ...], name: str) -> int:
    """Bytes of the numbers of a matrix, or a stack of them, of shape [..., rows, cols] in a format; without scales."""
    *matrices, rows, cols = shape
    return prod(matrices) * FORMATS[name].number_bytes(rows, cols)


BOTH = (ROWS, FRAGMENTS)

F32 = register(WeightFormat("f32", DTYPES.index("f32"), 32, "float32", "float", exact="f32", fill=FILL_F32))
BF16 = register(
    WeightFormat(
        name="bf16",
        code=DTYPES.index("bf16"),
        bits=16,
        torch="bfloat16",
        cpp="bf16",
        layouts=BOTH,
        cuda=CudaLoader("Bf16", 4),
        fill=FILL_BF16,
        exact="bf16",
    )
)
FP8 = register(
    WeightFormat(
        name="fp8",
        code=DTYPES.index("fp8"),
        bits=8,
        torch="float8_e4m3fn",
        cpp="fp8",
        block=(SCALE_BLOCK, SCALE_BLOCK),
        largest=E4M3_MAX,
        layouts=BOTH,
        cuda=CudaLoader("Fp8", 3),
        fill=FILL_E4M3,
        exact="bf16",
    )
)
NVFP4 = register(
    WeightFormat(
        name="nvfp4",
        code=4,
        bits=4,
        torch="uint4",
        cpp="nvfp4",
        exact="bf16",
        block=(1, 16),
        scale="e4m3",
        matrix_scale="f32",
        largest=6.0,
    )
)
"""e2m1 numbers (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives), 16 of a row with an e4m3 scale, a matrix with an f32
one."""
