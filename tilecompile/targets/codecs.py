"""The compiler's half of the weight formats: rows of matrices to the bytes of a tile and back, in torch.

A format's row in `runtime/weight_formats.py` says how many bytes there are, its codec here what stands in them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from tilecompile.errors import InputError
from tilecompile.ir.tiling import PANEL, WeightTile
from tilecompile.ops.dtypes import torch_dtype
from tilecompile.runtime.weight_formats import BF16, F32, FP8, FRAGMENTS, ROWS, WeightFormat
from tilecompile.targets.cuda.fragments import pack_copy, unpack_copy
from tilecompile.targets.tiles import pack_lines, pack_rows, unpack_lines, unpack_rows

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


@dataclass(frozen=True)
class Plain:
    """A format whose numbers are torch's, without scales."""

    stored: WeightFormat

    @property
    def values(self) -> torch.dtype:
        """The numbers' own type."""
        return torch_dtype(self.stored.name)

    def packer(self, read: Read, rows_of: RowsOf) -> Packer:
        """Rounds to nearest even."""

        def pack(tile: WeightTile, matrices: range) -> torch.Tensor:
            cols = slice(tile.col_begin, tile.col_begin + tile.cols)
            rows = [
                [read(name, m, tile.row_begin, tile.row_end, self.values)[:, cols] for name in tile.tensors]
                for m in matrices
            ]
            if tile.layout == ROWS:
                return torch.cat([pack_rows(tensors).flatten() for tensors in rows])
            return pack_copy(rows)

        return pack

    def unpack(self, data: torch.Tensor, copy: Copy) -> Values:
        """The numbers."""
        if copy.layout == ROWS:
            each = data.view(self.values).view(copy.count, -1)
            return [unpack_rows(panels, copy.tensors, copy.rows, copy.cols) for panels in each]
        return unpack_copy(data, copy.tensors, copy.count, copy.rows, copy.cols, self.values)[0]


class Quantised:
    """Matrices of any weights as numbers with a scale (largest of a block / largest number) for each block.

    `read` gives f32 rows. Blocks are those of the whole matrix, so neither numbers nor scales depend on how it is cut.
    """

    def __init__(self, stored: WeightFormat, read: Read, rows_of: RowsOf) -> None:
        self._block, self._largest, self._numbers = stored.block, stored.largest or 1.0, torch_dtype(stored.name)
        self._read, self._rows_of = read, rows_of
        self._scales: dict[tuple[str, int, int], torch.Tensor] = {}

    def scales(self, name: str, matrix: int, block: int) -> torch.Tensor:
        """The scales of row block `block` of a matrix, f32 [column blocks]."""
        key = (name, matrix, block)
        if key not in self._scales:
            rows, cols = self._block
            end = min((block + 1) * rows, self._rows_of(name))
            most = self._read(name, matrix, block * rows, end, torch.float32).abs().amax(0)
            padded = torch.nn.functional.pad(most, (0, -len(most) % cols))
            found = padded.view(-1, cols).amax(1) / self._largest
            self._scales[key] = torch.where(found > 0, found, 1.0)
        return self._scales[key]

    def read(self, name: str, matrix: int, row_begin: int, row_end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of a matrix as numbers, [rows, cols], and the scales of each row, f32 [rows, column blocks]."""
        values = self._read(name, matrix, row_begin, row_end, torch.float32)
        rows, cols = self._block
        scales = torch.stack([self.scales(name, matrix, row // rows) for row in range(row_begin, row_end)])
        wide = scales.repeat_interleave(cols, 1)[:, : values.shape[1]]
        return (values / wide).to(self._numbers), scales


@dataclass(frozen=True)
class Scaled:
    """A format whose numbers are torch's, of one byte, with f32 scales for blocks of at least a panel's rows."""

    stored: WeightFormat
    values: torch.dtype = torch.float32

    def packer(self, read: Read, rows_of: RowsOf) -> Packer:
        """Quantises; InputError for a tile that begins within a panel."""
        quantised = Quantised(self.stored, read, rows_of)

        def pack(tile: WeightTile, matrices: range) -> torch.Tensor:
            if tile.row_begin % PANEL:
                raise InputError(
                    f"{' + '.join(tile.tensors)}: a tile begins at row {tile.row_begin}, "
                    f"in {self.stored.name} it must be a multiple of {PANEL}"
                )
            end, width = tile.col_begin + tile.cols, self.stored.block[1]
            cols, blocks = slice(tile.col_begin, end), slice(tile.col_begin // width, -(-end // width))
            pack_all = pack_copy if tile.layout == FRAGMENTS else pack_lines
            found = [[quantised.read(name, m, tile.row_begin, tile.row_end) for name in tile.tensors] for m in matrices]
            rows = [[numbers[:, cols] for numbers, _ in tensors] for tensors in found]
            scales = [[scales[:, blocks] for _, scales in tensors] for tensors in found]
            each = range(len(found)) if tile.gathered else ()
            copies = [pack_all([rows[m]], [scales[m]]) for m in each] or [pack_all(rows, scales)]
            return torch.cat(copies)

        return pack

    def unpack(self, data: torch.Tensor, copy: Copy) -> Values:
        """The numbers times their scales."""
        blocks = self.stored.panel_scales(copy.cols, copy.col_begin)
        numbers = torch_dtype(self.stored.name)
        unpack = unpack_copy if copy.layout == FRAGMENTS else unpack_lines
        matrices, scales = unpack(data, copy.tensors, copy.count, copy.rows, copy.cols, numbers, blocks)
        at = (torch.arange(copy.cols) + self.stored.phase(copy.col_begin)) // self.stored.block[1]
        pairs = zip(matrices, scales, strict=True)
        return [[w.float() * s[:, at] for w, s in zip(*both, strict=True)] for both in pairs]


CODECS: dict[str, Codec] = {"f32": Plain(F32), "bf16": Plain(BF16), "fp8": Scaled(FP8)}
"""The codecs by the formats' names."""
