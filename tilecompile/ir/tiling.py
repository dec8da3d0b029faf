"""An operator split into tasks: their coordinates, what they read and write, the weight tiles that they stream."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tilecompile.ir.node import OpNode
from tilecompile.runtime import format as fmt
from tilecompile.runtime.weight_formats import FORMATS

PANEL = fmt.PANEL
"""Rows of a weight panel: the lanes of a `v16`."""


Bound = int | npt.NDArray[np.int64]


@dataclass(frozen=True)
class Access:
    """The boxes of one operand that the tasks of a grid read or write.

    `box` gives (begin, end) for each dimension of the operand's view; each bound is a number or an array with one
    entry a task. For a data-dependent address the box is all that it can reach.
    """

    operand: int
    box: tuple[tuple[Bound, Bound], ...]


def whole(node: OpNode, operand: int) -> Access:
    """The access of every task to all of an operand."""
    return Access(operand, tuple((0, size) for size in node.operands[operand].shape))


@dataclass(frozen=True)
class WeightTile:
    """Rows of one or two weight matrices that one task streams, as they are stored in the pool.

    The matrices are taken as [matrices, rows, cols] (a 2-d weight is one matrix). The tile holds rows
    `row_begin:row_end` of matrices `begin:end`, `cols` columns of them from `col_begin` on; rows of each matrix are
    padded to whole panels; with two tensors their panels alternate. A `gathered` tile stands for one such tile per
    matrix (an expert), chosen at run time. `layout` is the order within panels (format.LAYOUTS).
    """

    tensors: tuple[str, ...]
    begin: int
    end: int
    row_begin: int
    row_end: int
    cols: int
    gathered: bool = False
    col_begin: int = 0
    layout: str = "rows"

    @property
    def panels(self) -> int:
        """Panels of 16 rows in the tile (of one expert, if gathered)."""
        matrices = 1 if self.gathered else self.end - self.begin
        return matrices * -(-(self.row_end - self.row_begin) // PANEL) * len(self.tensors)

    def bytes(self, dtype: str) -> int:
        """Bytes of the tile (of one expert, if gathered) with weights of a type."""
        return FORMATS[dtype].tile_bytes(self.panels, self.cols, self.col_begin, self.layout)


@dataclass(frozen=True)
class Tiling:
    """An operator split into tasks: coordinates, accesses and weight tiles, one entry a task.

    `coords` is int32 [tasks, 4] and becomes `Instruction.tile`. `weights[i]` are the tiles that task i streams, in
    order; a gathered tile carries the expert slot that addresses it. `cost` is float64 [tasks], in bytes moved.
    `scratch` is the private memory in bytes that the body needs.

    The proof of a schedule believes the accesses, so a task reads nothing outside its reads and writes nothing outside
    its writes, not even for a moment, and no two tasks write the same element. Neither do bodies read past the end of a
    tensor, a tile or the scratch memory (rounded up to 64 bytes): no padding is promised. Prefetches are free.
    """

    coords: npt.NDArray[np.int32]
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]
    weights: tuple[tuple[tuple[WeightTile, int], ...], ...]
    cost: npt.NDArray[np.float64]
    scratch: int = 0


def split(size: int, parts: int, unit: int = PANEL) -> npt.NDArray[np.int64]:
    """Bounds of at most `parts` nearly equal pieces of `size`, each a multiple of `unit` but the last."""
    units = -(-size // unit)
    parts = max(1, min(parts, units))
    bounds = np.minimum((np.arange(parts + 1) * units // parts) * unit, size)
    return bounds.astype(np.int64)


GRAIN = 4096
"""Elements below which an elementwise op is not worth splitting: a task costs about as much as moving these."""


def pieces(parts: int, elements: int) -> int:
    """How many tasks to make of an op that only reads and writes `elements`: at most `parts`, none far below GRAIN."""
    return max(1, min(parts, -(-elements // GRAIN)))
