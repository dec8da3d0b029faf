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

    @property
    def group_cols(self) -> int:
        """Columns of a panel of layout "rows" that are stored as one line, where blocks have scales; else 1."""
        return LINE_BYTES * 8 // (PANEL * self.bits) if self.scaled else 1

    def head_bytes(self, panels: Count, cols: Count, col_begin: Count, layout: str = FRAGMENTS) -> Count:
        """Bytes in front of a tile's numbers: the scales of its panels, in whole k-blocks or lines."""
        unit = FRAGMENT_BYTES if layout == FRAGMENTS else LINE_BYTES
        return -(-self.scale_bytes(panels, cols, col_begin) // unit) * unit

    def tile_bytes(self, panels: int, cols: int, col_begin: int, layout: str) -> int:
        """Bytes of a weight tile of `panels` panels, in which columns begin at `col_begin` of the matrix.

        The scales of all panels come first. Panels are whole k-blocks in layout "fragments"; in layout "rows" they are
        whole lines where there are scales.
        """
        head = self.head_bytes(panels, cols, col_begin, layout)
        if layout == ROWS:
            return head + panels * -(-cols // self.group_cols) * self.group_cols * (PANEL * self.bits // 8)
        return head + panels * -(-cols // self.fragment_cols) * FRAGMENT_BYTES


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
