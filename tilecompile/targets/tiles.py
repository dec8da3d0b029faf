"""Weight tiles to bytes: the layout that the bodies for CPUs stream, panels [cols][16 rows], and the scales of any.

In bf16 and fp8 the columns of a panel go in pairs, [cols / 2][16 rows][2] (the last of an odd number alone): seen as
32-bit words in bf16 and 16-bit words in fp8, a row's two weights are widened by a shift and a mask, without a shuffle.
In fp8 columns are padded with zeros to whole lines of 64 bytes, which are four columns.

A tile with scales begins with those of its panels, f32, in the panels' order: for each one those of the matrix's blocks
that it meets. Zeros follow up to a whole line (in fragments, a whole k-block).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tilecompile.ir.tiling import PANEL
from tilecompile.runtime.weight_formats import LINE_BYTES

Matrices = Sequence[Sequence[torch.Tensor]]
"""Matrices [rows, cols], by matrix and tensor of a tile."""

LINE_COLS = LINE_BYTES // PANEL
"""Columns of a line of one-byte numbers."""


def pack_rows(matrices: list[torch.Tensor]) -> torch.Tensor:
    """Panels of one or more [rows, cols] matrices of equal shape, alternating: [panels, matrices, cols, 16]."""
    rows, cols = matrices[0].shape
    panels = -(-rows // PANEL)
    out = torch.zeros((panels, len(matrices), PANEL, _stored(cols, matrices[0])), dtype=matrices[0].dtype)
    for i, matrix in enumerate(matrices):
        full = rows // PANEL
        out[:full, i, :, :cols] = matrix[: full * PANEL].view(full, PANEL, cols)
        if full < panels:
            out[full, i, : rows - full * PANEL, :cols] = matrix[full * PANEL :]
    return _exchange(out.transpose(2, 3).contiguous(), (PANEL, 2))


def unpack_rows(panels: torch.Tensor, matrices: int, rows: int, cols: int) -> list[torch.Tensor]:
    """The matrices [rows, cols] of which `pack_rows` made the panels (of any shape, contiguous)."""
    stored = _stored(cols, panels)
    whole = _exchange(panels.view(-1, matrices, stored, PANEL), (2, PANEL)).transpose(2, 3)
    return [whole[:, i].reshape(-1, stored)[:rows, :cols] for i in range(matrices)]


def _stored(cols: int, numbers: torch.Tensor) -> int:
    """Columns of a panel with those that fill its last line."""
    return -(-cols // LINE_COLS) * LINE_COLS if numbers.element_size() == 1 else cols


def _exchange(panels: torch.Tensor, to: tuple[int, int]) -> torch.Tensor:
    """In bf16 and fp8: each two columns of [panels, matrices, cols, 16] from column by row to row by column or back."""
    if panels.element_size() > 2:
        return panels
    pairs = panels.shape[2] // 2 * 2
    even = panels[:, :, :pairs].reshape(*panels.shape[:2], pairs // 2, to[1], to[0]).transpose(3, 4)
    return torch.cat((even.reshape(panels[:, :, :pairs].shape), panels[:, :, pairs:]), 2)


def pack_lines(matrices: Matrices, scales: Matrices) -> torch.Tensor:
    """The bytes of a tile with scales, uint8.

    `matrices[m][i]` are the rows of matrix m of tensor i, of one-byte numbers, `scales[m][i]` their scales, f32
    [rows, blocks] with one value in all rows of a panel.
    """
    numbers = [pack_rows([w.view(torch.uint8) for w in tensors]).flatten() for tensors in matrices]
    return torch.cat([scale_head(scales, LINE_BYTES), *numbers])


def unpack_lines(
    data: torch.Tensor, tensors: int, count: int, rows: int, cols: int, dtype: torch.dtype, blocks: int
) -> tuple[list[list[torch.Tensor]], list[list[torch.Tensor]]]:
    """What `pack_lines` made a tile of: `count` matrices of `tensors` tensors, and the scales by row."""
    scales, size = split_head(data, tensors, count, rows, blocks, LINE_BYTES)
    each = data[size:].view(count, -1)
    return [[w.contiguous().view(dtype) for w in unpack_rows(part, tensors, rows, cols)] for part in each], scales


def scale_head(scales: Matrices, unit: int) -> torch.Tensor:
    """The scales of a tile as its first bytes, uint8, of which there are whole units; those of a panel are its first
    row's."""
    head = torch.cat([torch.stack([s[::PANEL] for s in tensors], 1).flatten() for tensors in scales]).view(torch.uint8)
    return torch.nn.functional.pad(head, (0, -len(head) % unit))


def split_head(
    data: torch.Tensor, tensors: int, count: int, rows: int, blocks: int, unit: int
) -> tuple[list[list[torch.Tensor]], int]:
    """The scales of each row of `count` matrices of `tensors` tensors, f32 [rows, blocks], and the head's bytes."""
    panels = -(-rows // PANEL)
    size = count * panels * tensors * blocks * 4
    by_panel = data[:size].clone().view(torch.float32).view(count, panels, tensors, blocks)
    by_row = by_panel.repeat_interleave(PANEL, 1)[:, :rows]
    return [[by_row[m, :, i] for i in range(tensors)] for m in range(count)], -(-size // unit) * unit
