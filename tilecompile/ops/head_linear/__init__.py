"""head_linear: a matrix-vector product per token and head, each head with a matrix of its own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import PANEL, Access, Tiling, WeightTile, split
from tilecompile.ops.base import SplitAxis, TileOp, register
from tilecompile.ops.head_linear.gpu import gpu
from tilecompile.ops.linear import cpu_columns
from tilecompile.runtime.weight_formats import FORMATS


@torch.library.custom_op("tilecompile::head_linear", mutates_args=())
def head_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """y[t, h] = weight[h] · x[t, h]. x: f32 [T, H, K], weight: [H, N, K]; returns f32 [T, H, N], accumulated in f32."""
    return torch.einsum("thk,hnk->thn", x, weight.to(x.dtype))


@head_linear.register_fake
def _(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.empty((x.shape[0], x.shape[1], weight.shape[1]), dtype=x.dtype, device=x.device)


def split_heads(heads: int, rows: int, parts: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Bounds of the head ranges, and of the row ranges that each of them is cut into.

    Whole heads where they come out even, or nearly so because there are many; else single heads whose rows are cut so
    that the busiest of `parts` workers has least to do.
    """
    if heads % parts == 0 or heads >= 4 * parts:
        return split(heads, parts, 1), np.array([0, rows])
    panels = -(-rows // PANEL)
    most = min(panels, -(-2 * parts // heads))
    cuts = min(range(1, most + 1), key=lambda n: -(-heads * n // parts) * -(-panels // n))
    return np.arange(heads + 1), split(rows, cuts)


def tile(node: OpNode, parts: int) -> Tiling:
    """Head ranges, and row ranges of single heads; coordinates (first head, end of heads, first row, end of rows)."""
    x, weight = node.inputs[0], node.weights[0]
    tokens, heads, cols = x.shape
    rows = weight.shape[1]
    head_bounds, row_bounds = split_heads(heads, rows, parts)
    cuts = len(row_bounds) - 1
    head_lo, head_hi = np.repeat(head_bounds[:-1], cuts), np.repeat(head_bounds[1:], cuts)
    row_lo, row_hi = np.tile(row_bounds[:-1], len(head_bounds) - 1), np.tile(row_bounds[1:], len(head_bounds) - 1)
    coords = np.stack([head_lo, head_hi, row_lo, row_hi], 1).astype(np.int32)
    stored = FORMATS[weight.dtype]
    tiles = [WeightTile((weight.tensor,), a, b, lo, hi, cols) for a, b, lo, hi in coords.tolist()]
    return Tiling(
        coords=coords,
        reads=(Access(0, ((0, tokens), (head_lo, head_hi), (0, cols))),),
        writes=(Access(1, ((0, tokens), (head_lo, head_hi), (row_lo, row_hi))),),
        weights=tuple(((tile, -1),) for tile in tiles),
        cost=np.asarray(stored.number_bytes((head_hi - head_lo) * (row_hi - row_lo), cols), np.float64),
    )


def cpu(node: OpNode) -> str:
    """The call of `head_linear` with the node's shapes and strides."""
    x, y = node.operands
    weight = node.weights[0]
    return (
        f"head_linear(c.weights<{FORMATS[weight.dtype].cpp}>(0), c.tokens(0), {cpu_columns(node)}, "
        f"c.arg<const float>(0), {x.strides[0]}, {x.strides[1]}, c.arg<float>(1), {y.strides[0]}, {y.strides[1]}, "
        "c.tile(0), c.tile(1), c.tile(2), c.tile(3));"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """The eager value of a node."""
    y: torch.Tensor = head_linear(inputs[0], weights[0])
    return y


SPLIT_AXES = {"heads": SplitAxis({0: 1}, weights=0, output=1)}

register(
    TileOp(
        "head_linear",
        tile,
        cpu,
        reference,
        weight_args=("weight",),
        headers=("rms_norm", "linear"),
        split_axes=SPLIT_AXES,
        gpu=gpu,
    )
)
