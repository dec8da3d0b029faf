"""nvfp4: matrices as e2m1 numbers, 16 of a row with an e4m3 scale, and an f32 scale for all of a matrix.

The format is NVIDIA's ("Introducing NVFP4 for efficient and accurate low-precision inference", 2025). A matrix's scale
takes its largest weight to the largest product of a number and a scale, a block's scale its largest weight to 6; both
are those of the whole matrix, however it is cut.

In layout "rows" a panel is groups of 64 columns, of which the last may be in part zeros: a line of the scales of its
four blocks by row, then eight lines of eight columns each, in which a row is four bytes, the first column lowest. A
tile begins with the matrices' scales, one for each panel, up to a whole line.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import torch

from tilecompile.errors import InputError
from tilecompile.ir.tiling import PANEL, WeightTile
from tilecompile.runtime.format import E4M3_MAX
from tilecompile.runtime.weight_formats import LINE_BYTES, NVFP4
from tilecompile.targets.codec import Copy, Packer, Read, RowsOf, Values

BLOCK, LARGEST = NVFP4.block[1], 6.0
GROUP, LINE = NVFP4.group_cols, NVFP4.line_cols
NUMBERS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""The numbers by their code."""


@dataclass(frozen=True)
class Matrix:
    """A quantised matrix: codes of numbers uint8 [rows, cols], scales e4m3 [rows, blocks], and the matrix's scale."""

    codes: torch.Tensor
    scales: torch.Tensor
    scale: float

    @property
    def values(self) -> torch.Tensor:
        """What it stands for, f32 [rows, cols]."""
        wide = self.scales.float().repeat_interleave(BLOCK, 1)[:, : self.codes.shape[1]]
        return NUMBERS[self.codes.int()] * (wide * self.scale)


def matrix_scale(values: torch.Tensor) -> float:
    """The scale of a whole matrix f32 [rows, cols]; 1 for zeros."""
    return float(values.abs().amax() / (LARGEST * E4M3_MAX)) or 1.0


def quantise(values: torch.Tensor, scale: float) -> Matrix:
    """Whole blocks of rows f32 [rows, cols] of a matrix with a scale, each number rounded to the nearest."""
    rows, cols = values.shape
    blocks = torch.nn.functional.pad(values, (0, -cols % BLOCK)).view(rows, -1, BLOCK)
    scales = (blocks.abs().amax(2) / LARGEST / scale).clamp(max=E4M3_MAX).to(torch.float8_e4m3fn)
    unit = (scales.float() * scale).unsqueeze(2)
    numbers = torch.where(unit > 0, blocks / unit.clamp(min=torch.finfo(torch.float32).tiny), 0)
    codes = numbers.clamp(-LARGEST, LARGEST).numpy().astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    return Matrix(torch.from_numpy(codes).view(rows, -1)[:, :cols].contiguous(), scales, scale)


class Nvfp4:
    """The codec, in layout "rows"."""

    values = torch.float32

    def packer(self, read: Read, rows_of: RowsOf) -> Packer:
        """Quantises; InputError for a tile that begins within a panel or a block."""
        scales: dict[tuple[str, int], float] = {}

        def scale_of(name: str, matrix: int) -> float:
            if (name, matrix) not in scales:
                scales[name, matrix] = matrix_scale(read(name, matrix, 0, rows_of(name), torch.float32))
            return scales[name, matrix]

        def part(tile: WeightTile, name: str, matrix: int) -> Matrix:
            values = read(name, matrix, tile.row_begin, tile.row_end, torch.float32)
            return quantise(values[:, tile.col_begin : tile.col_begin + tile.cols], scale_of(name, matrix))

        def pack(tile: WeightTile, matrices: range) -> torch.Tensor:
            for what, begin, unit in (("row", tile.row_begin, PANEL), ("column", tile.col_begin, BLOCK)):
                if begin % unit:
                    raise InputError(
                        f"{' + '.join(tile.tensors)}: a tile begins at {what} {begin}, "
                        f"in {NVFP4.name} it must be a multiple of {unit}"
                    )
            found = [[part(tile, name, m) for name in tile.tensors] for m in matrices]
            copies = [[tensors] for tensors in found] if tile.gathered else [found]
            return torch.cat([_packed(copy) for copy in copies])

        return pack

    def unpack(self, data: torch.Tensor, copy: Copy) -> Values:
        """The numbers times their scales."""
        panels, groups = -(-copy.rows // PANEL), -(-copy.cols // GROUP)
        heads = copy.count * panels * copy.tensors
        begin = -(-heads * 4 // LINE_BYTES) * LINE_BYTES
        scale = data[: heads * 4].clone().view(torch.float32).view(copy.count, panels, copy.tensors)
        whole = data[begin:].view(copy.count, panels, copy.tensors, groups, -1)
        return [
            [_unpacked(whole[m, :, i], float(scale[m, 0, i]), copy) for i in range(copy.tensors)]
            for m in range(copy.count)
        ]


def _packed(matrices: list[list[Matrix]]) -> torch.Tensor:
    """The bytes of a copy of a tile: matrices, each of its tensors'."""
    panels = -(-len(matrices[0][0].codes) // PANEL)
    scales = torch.tensor([[m.scale for m in tensors] for tensors in matrices])
    head = scales.unsqueeze(1).expand(-1, panels, -1).contiguous().flatten().view(torch.uint8)
    parts = [torch.stack([_groups(m) for m in tensors], 1).flatten() for tensors in matrices]
    return torch.cat([torch.nn.functional.pad(head, (0, -len(head) % LINE_BYTES)), *parts])


def _groups(matrix: Matrix) -> torch.Tensor:
    """The panels of a matrix: uint8 [panels, groups, bytes]."""
    rows, cols = matrix.codes.shape
    below, right = -rows % PANEL, -cols % GROUP
    codes = torch.nn.functional.pad(matrix.codes, (0, right, 0, below)).view(-1, PANEL, (cols + right) // GROUP, GROUP)
    pairs = codes[..., ::2] | codes[..., 1::2] << 4
    lines = pairs.view(*pairs.shape[:3], GROUP // LINE, LINE // 2).permute(0, 2, 3, 1, 4)
    blocks = (cols + right) // BLOCK - matrix.scales.shape[1]
    scales = torch.nn.functional.pad(matrix.scales.view(torch.uint8), (0, blocks, 0, below))
    by_group = scales.view(-1, PANEL, (cols + right) // GROUP, GROUP // BLOCK).permute(0, 2, 3, 1)
    return torch.cat([by_group.flatten(2), lines.flatten(2)], 2)


def _unpacked(groups: torch.Tensor, scale: float, copy: Copy) -> torch.Tensor:
    """The values f32 [rows, cols] in the panels of a matrix, uint8 [panels, groups, bytes]."""
    panels, count = groups.shape[:2]
    scales = groups[..., :LINE_BYTES].reshape(panels, count, GROUP // BLOCK, PANEL).permute(0, 3, 1, 2)
    lines = groups[..., LINE_BYTES:].reshape(panels, count, GROUP // LINE, PANEL, LINE // 2).permute(0, 3, 1, 2, 4)
    codes = torch.stack([lines & 15, lines >> 4], -1).reshape(panels * PANEL, -1)[: copy.rows, : copy.cols]
    by_row = scales.reshape(panels * PANEL, -1).contiguous().view(torch.float8_e4m3fn)[: copy.rows]
    return Matrix(codes, by_row, scale).values
