"""What a codec of a weight format does: rows of matrices to the bytes of a tile and back, in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from tilecompile.ir.tiling import WeightTile

Read = Callable[[str, int, int, int, torch.dtype], torch.Tensor]
"""Rows of one matrix of a parameter in a torch type: (name, matrix, row_begin, row_end, dtype) -> [rows, cols]."""

RowsOf = Callable[[str], int]
"""The rows of a parameter's matrices, by its name."""

Packer = Callable[[WeightTile, range], torch.Tensor]
"""The bytes of one copy of a tile, which holds these matrices. It may keep what it has learnt of a parameter."""

Values = list[list[torch.Tensor]]
"""Matrices [rows, cols] by matrix and tensor of a tile."""


@dataclass(frozen=True)
class Copy:
    """What one copy of a tile holds: `count` matrices [rows, cols] of each of `tensors` tensors, whose columns begin at
    `col_begin` of the whole ones, in a layout."""

    tensors: int
    count: int
    rows: int
    cols: int
    col_begin: int
    layout: str


class Codec(Protocol):
    """Packs and unpacks tiles of a format."""

    @property
    def values(self) -> torch.dtype:
        """The type of unpacked values."""

    def packer(self, read: Read, rows_of: RowsOf) -> Packer:
        """A packer of the tiles of a pool."""

    def unpack(self, data: torch.Tensor, copy: Copy) -> Values:
        """The values in the bytes of a copy."""
