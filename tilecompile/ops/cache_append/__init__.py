"""cache_append: writes the step's rows into some columns of a cache.

With `attrs["context"]` (see `ops/context.py`) the cache holds only some blocks of positions; other rows are dropped.
"""

from __future__ import annotations

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.placement import Split
from tilecompile.ir.tiling import Access, Tiling, whole
from tilecompile.ops.base import CPP_TYPES, NO_ROWS, Distribution, TileOp, register
from tilecompile.ops.cache_append.gpu import gpu
from tilecompile.ops.context import Context, cpp_context, parts_of
from tilecompile.runtime.format import DTYPE_BYTES


@torch.library.custom_op("tilecompile::cache_append", mutates_args=("cache",))
def cache_append(cache: torch.Tensor, x: torch.Tensor, position: torch.Tensor, column: int) -> None:
    """cache[position + t, column + i] = x[t, i], rounded to the cache's type; rows past its end are dropped.

    cache: f32 or bf16 [S, D], x: f32 [T, W], position: i32 [1].
    """
    begin = int(position[0])
    tokens = max(0, min(x.shape[0], cache.shape[0] - begin))
    cache[begin : begin + tokens, column : column + x.shape[1]] = x[:tokens].to(cache.dtype)


@cache_append.register_fake
def _(cache: torch.Tensor, x: torch.Tensor, position: torch.Tensor, column: int) -> None:
    return None


def tile(node: OpNode, parts: int) -> Tiling:
    """One task; which rows it writes is known at run time only, so all rows of the columns are declared."""
    cache, x, _ = node.inputs
    column, context = node.attrs["column"], Context.of(node)
    return Tiling(
        coords=np.array([[0, 0, 0, context.index if context else 0]], np.int32),
        reads=(whole(node, 1), whole(node, 2)),
        writes=(Access(0, ((0, cache.shape[0]), (column, column + x.shape[1]))),),
        weights=((),),
        cost=np.array([float(x.shape[0] * x.shape[1] * (4 + DTYPE_BYTES[cache.dtype]))]),
    )


def cpu(node: OpNode) -> str:
    """The call of `cache_append` with the node's shapes."""
    cache, x, _ = node.inputs
    return (
        f"cache_append(c.tokens(1), {x.shape[1]}, {cpp_context(node)}, "
        f"c.arg<{CPP_TYPES[cache.dtype]}>(0) + {node.attrs['column']}, "
        f"{cache.strides[0]}, {cache.shape[0]}, c.arg<const float>(1), {x.strides[0]}, *c.arg<const int32_t>(2));"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> None:
    """The eager effect of a node, on its first input."""
    context = Context.of(node)
    if context is None:
        cache_append(inputs[0], inputs[1], inputs[2], node.attrs["column"])
        return
    begin = int(inputs[2][0])
    for t, x in enumerate(inputs[1]):
        row = context.rows(begin + t)
        if context.rows(begin + t + 1) > row:
            cache_append(inputs[0], x[None], torch.tensor([row]), node.attrs["column"])


def by_context(distribution: Distribution, node: OpNode, split: Split) -> None:
    """Each device appends to its own blocks."""
    cache = node.inputs[0]
    for device, context, own in parts_of(node, split):
        shape = (context.rows(cache.shape[0]), *cache.shape[1:])
        shard = distribution.make_shard(cache.tensor, device, context, shape)
        distribution.add(own, device, (shard, *node.inputs[1:]), (), ())


register(
    TileOp(
        "cache_append",
        tile,
        cpu,
        reference,
        mutated=("cache",),
        gpu=gpu,
        reads=lambda node: {0: NO_ROWS},
        context_rule=by_context,
        partly_written=True,
    )
)
