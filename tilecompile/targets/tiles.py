"""Weight tiles to bytes: the layout that the bodies stream, panels [cols][16 rows].

In bf16 the columns of a panel go in pairs, [cols / 2][16 rows][2] (the last of an odd number alone): seen as 32-bit
words, a row's two weights are widened by one shift and one mask, without a shuffle.
"""

from __future__ import annotations

import torch

from tilecompile.ir.tiling import PANEL


def pack_rows(matrices: list[torch.Tensor]) -> torch.Tensor:
    """Panels of one or more [rows, cols] matrices of equal shape, alternating: [panels, matrices, cols, 16]."""
    rows, cols = matrices[0].shape
    panels = -(-rows // PANEL)
    out = torch.zeros((panels, len(matrices), PANEL, cols), dtype=matrices[0].dtype)
    for i, matrix in enumerate(matrices):
        full = rows // PANEL
        out[:full, i] = matrix[: full * PANEL].view(full, PANEL, cols)
        if full < panels:
            out[full, i, : rows - full * PANEL] = matrix[full * PANEL :]
    return _exchange(out.transpose(2, 3).contiguous(), (PANEL, 2))


def unpack_rows(panels: torch.Tensor, matrices: int, rows: int, cols: int) -> list[torch.Tensor]:
    """The matrices [rows, cols] of which `pack_rows` made the panels (of any shape, contiguous)."""
    whole = _exchange(panels.view(-1, matrices, cols, PANEL), (2, PANEL)).transpose(2, 3)
    return [whole[:, i].reshape(-1, cols)[:rows] for i in range(matrices)]


def _exchange(panels: torch.Tensor, to: tuple[int, int]) -> torch.Tensor:
    """In bf16: each two columns of [panels, matrices, cols, 16] from column by row to row by column, or back."""
    if panels.element_size() != 2:
        return panels
    pairs = panels.shape[2] // 2 * 2
    even = panels[:, :, :pairs].reshape(*panels.shape[:2], pairs // 2, to[1], to[0]).transpose(3, 4)
    return torch.cat((even.reshape(panels[:, :, :pairs].shape), panels[:, :, pairs:]), 2)
