"""Weight tiles in fragment order: the first operand of the tensor cores, laid out for 16-byte loads.

A panel of 16 rows is a sequence of k-blocks of 512 bytes in ascending columns. A warp takes one at a time, lane l its
bytes 16 l to 16 l + 15, which are what the lane holds of a 16 x 16 matrix A of `mma.sync.m16n8k16` (PTX ISA, "Matrix
fragments for mma.m16n8k16 with floating point type"): a0 to a7, in bf16. In fp8 they are a0 to a7 of 16 columns, then
those of the next 16: a k-block has 32 columns, and two bytes become one register. Rows are padded to whole panels,
columns to whole k-blocks, with zeros. With two weights their panels alternate.

An fp8 tile begins with the scales of its panels, f32, in the panels' order: for each one those of the matrix's blocks
of 128 x 128 that it meets. Zeros follow up to a multiple of 512 bytes.
"""

from __future__ import annotations

import torch

from tilecompile.runtime.format import FRAGMENT_BYTES, PANEL
from tilecompile.targets.tiles import Matrices, scale_head, split_head


def fragments(matrix: torch.Tensor) -> torch.Tensor:
    """The k-blocks of a matrix [rows, cols] of 1- or 2-byte elements: uint8 [panels, blocks, 32 lanes, 16]."""
    size = matrix.element_size()
    width = 32 // size
    rows, cols = matrix.shape
    panels, blocks = -(-rows // PANEL), -(-cols // width)
    whole = torch.zeros((panels * PANEL, blocks * width), dtype=torch.int16 if size == 2 else torch.uint8)
    whole[:rows, :cols] = matrix.view(whole.dtype)
    # Row 8 high + group, column 16 part + 8 right + 2 thread + odd; a lane is 4 group + thread.
    split = whole.view(panels, 2, 8, blocks, width // 16, 2, 4, 2)
    panel, high, group, block, part, right, thread, odd = range(8)
    ordered = split.permute(panel, block, group, thread, part, right, high, odd).contiguous()
    return ordered.view(torch.uint8).view(panels, blocks, 32, 16)


def unfragmented(blocks: torch.Tensor, rows: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    """The matrix [rows, cols] of which `fragments` made the k-blocks [panels, blocks, 32, 16]."""
    size = dtype.itemsize
    panels, count = blocks.shape[:2]
    ordered = blocks.contiguous().view(torch.int16 if size == 2 else torch.uint8)
    split = ordered.view(panels, count, 8, 4, 2 // size, 2, 2, 2)
    panel, block, group, thread, part, right, high, odd = range(8)
    whole = split.permute(panel, high, group, block, part, right, thread, odd).reshape(panels * PANEL, -1)
    return whole[:rows, :cols].contiguous().view(dtype)


def pack_copy(matrices: Matrices, scales: Matrices = ()) -> torch.Tensor:
    """The bytes of a tile (of one expert, if gathered), uint8.

    `matrices[m][i]` are the rows of matrix m of tensor i, `scales[m][i]` those of fp8, f32 [rows, blocks] with one
    value in all rows of a panel.
    """
    data = torch.cat([torch.stack([fragments(w) for w in tensors], 1).flatten() for tensors in matrices])
    if not scales:
        return data
    return torch.cat([scale_head(scales, FRAGMENT_BYTES), data])


def unpack_copy(
    data: torch.Tensor, tensors: int, count: int, rows: int, cols: int, dtype: torch.dtype, scale_blocks: int = 0
) -> tuple[list[list[torch.Tensor]], list[list[torch.Tensor]]]:
    """What `pack_copy` made a tile of: `count` matrices [rows, cols] of `tensors` tensors, and the scales by row."""
    panels = -(-rows // PANEL)
    size = -(-cols * dtype.itemsize // 32)
    scales, begin = split_head(data, tensors, count, rows, scale_blocks, FRAGMENT_BYTES) if scale_blocks else ([], 0)
    blocks = data[begin:].view(count, panels, tensors, size, 32, 16)
    return [[unfragmented(blocks[m, :, i], rows, cols, dtype) for i in range(tensors)] for m in range(count)], scales
