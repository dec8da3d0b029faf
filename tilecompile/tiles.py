"""Weight tiles to bytes: the layout that the bodies stream, panels of [cols][16 rows]."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from tilecompile.ops.base import PANEL, WeightTile


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
    return out.transpose(2, 3).contiguous()


def unpack_rows(panels: torch.Tensor, matrices: int, rows: int, cols: int) -> list[torch.Tensor]:
    """The matrices [rows, cols] of which `pack_rows` made the panels (of any shape, contiguous)."""
    whole = panels.view(-1, matrices, cols, PANEL).transpose(2, 3)
    return [whole[:, i].reshape(-1, cols)[:rows] for i in range(matrices)]


def pack_tile(tile: WeightTile, read: Callable[[str, int, int, int], torch.Tensor]) -> npt.NDArray[np.uint8]:
    """The bytes of a tile (of all experts, one after the other, if gathered).

    `read(tensor, matrix, row_begin, row_end)` gives rows of one matrix in the weight type, [rows, cols].
    """
    parts = [
        pack_rows([read(name, m, tile.row_begin, tile.row_end) for name in tile.tensors])
        for m in range(tile.begin, tile.end)
    ]
    return torch.cat([p.flatten() for p in parts]).view(torch.uint8).numpy()
