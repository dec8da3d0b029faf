"""embed: the rows of the embedding table that the step's ids name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import Access, Tiling, pieces, split, whole
from tilecompile.ops.base import CPP_TYPES, RowsRead, TileOp, register
from tilecompile.ops.embed.gpu import gpu
from tilecompile.runtime.format import DTYPE_BYTES


@torch.library.custom_op("tilecompile::embed", mutates_args=())
def embed(ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """y[t] = table[ids[t]]. ids: i32 [T], table: f32 or bf16 [V, H]; returns f32 [T, H]."""
    return table[ids.long()].float()


@embed.register_fake
def _(ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return torch.empty((ids.shape[0], table.shape[1]), dtype=torch.float32, device=table.device)


def tile(node: OpNode, parts: int) -> Tiling:
    """Column ranges, for all tokens; the coordinates are (first column, one past the last). Any row may be read."""
    table, y = node.inputs[1], node.outputs[0]
    tokens, cols = y.shape
    bounds = split(cols, pieces(parts, tokens * cols))
    lo, hi = bounds[:-1], bounds[1:]
    coords = np.zeros((len(lo), 4), np.int32)
    coords[:, 0], coords[:, 1] = lo, hi
    return Tiling(
        coords=coords,
        reads=(whole(node, 0), Access(1, ((0, table.shape[0]), (lo, hi)))),
        writes=(Access(2, ((0, tokens), (lo, hi))),),
        weights=((),) * len(lo),
        cost=np.asarray((hi - lo) * tokens * (4 + DTYPE_BYTES[table.dtype]), np.float64),
    )


def cpu(node: OpNode) -> str:
    """The call of `embed` with the node's shapes."""
    ids, table, y = node.operands
    return (
        f"embed(c.tokens(0), c.arg<const int32_t>(0), {ids.strides[0]}, c.arg<const {CPP_TYPES[table.dtype]}>(1), "
        f"{table.strides[0]}, c.arg<float>(2), {y.strides[0]}, c.tile(0), c.tile(1));"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """The eager value of a node."""
    y: torch.Tensor = embed(inputs[0], inputs[1])
    return y


def reads(node: OpNode) -> Mapping[int, RowsRead]:
    """Of the table the rows of the step's tokens."""
    return {1: RowsRead(node.outputs[0].shape[0], of_context=False)}


register(TileOp("embed", tile, cpu, reference, gpu=gpu, reads=reads))
