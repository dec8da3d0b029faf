"""index_score: how much each cached position matters to each token, by the indexer's small attention.

score[t, s] = Σ_h weight[t, h] · relu(query[t, h] · cache[s]), for the positions s that token t can see. A token that
sees at most `topk` positions needs no scores, and gets none. With `attrs["context"]` (see `ops/context.py`) the cache
holds only some blocks of positions, and the scores are those of its rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.placement import Split
from tilecompile.ir.tiling import Access, Tiling, whole
from tilecompile.ops.base import CPP_TYPES, Distribution, Indices, RowsRead, TaskWork, TileOp, register
from tilecompile.ops.context import Context, cpp_context, parts_of, rows_of
from tilecompile.ops.index_score.gpu import gpu
from tilecompile.runtime.format import DTYPE_BYTES, SCORE_KEYS

UNIT = 128
"""Blocks of positions are multiples of this."""

BLOCKS, ENOUGH = 8, 64
"""Blocks a part: the context ends somewhere in the cache, and the blocks before its end should be spread evenly. In all
at most ENOUGH, or one a part: with many parts, single blocks are spread well."""

LEAST = 256
"""Fewest positions of a block."""

FLOPS_PER_BYTE = 4.0
"""About what a core computes while it reads a byte; converts arithmetic into cost."""


@torch.library.custom_op("tilecompile::index_score", mutates_args=())
def index_score(
    query: torch.Tensor, weight: torch.Tensor, cache: torch.Tensor, position: torch.Tensor, topk: int
) -> torch.Tensor:
    """Scores f32 [T, S]; NaN where they are undefined.

    query: f32 [T, H, D], weight: f32 [T, H], cache: f32 or bf16 [S, D], position: i32 [1]. Defined are the scores of
    positions up to the token's own, position + t, if these are more than `topk`.
    """
    dots = torch.einsum("thd,sd->ths", query, cache.to(query.dtype))
    scores = torch.einsum("th,ths->ts", weight, torch.relu(dots))
    context = (position + 1 + torch.arange(query.shape[0], device=query.device))[:, None]
    defined = (torch.arange(cache.shape[0], device=query.device) < context) & (context > topk)
    return scores.masked_fill(~defined, float("nan"))


@index_score.register_fake
def _(
    query: torch.Tensor, weight: torch.Tensor, cache: torch.Tensor, position: torch.Tensor, topk: int
) -> torch.Tensor:
    return torch.empty((query.shape[0], cache.shape[0]), dtype=query.dtype, device=query.device)


def tile(node: OpNode, parts: int) -> Tiling:
    """Blocks of positions; the coordinates are (first position, one past the last)."""
    query, _, cache, _ = node.inputs
    tokens, heads, width = query.shape
    size = cache.shape[0]
    blocks = min(BLOCKS * parts, max(parts, ENOUGH))
    block = max(LEAST, -(-size // (blocks * UNIT)) * UNIT)
    lo = np.arange(0, size, block)
    hi = np.minimum(lo + block, size)
    coords = np.zeros((len(lo), 4), np.int32)
    coords[:, 0], coords[:, 1] = lo, hi
    if context := Context.of(node):
        coords[:, 3] = context.index
    element = DTYPE_BYTES[cache.dtype]
    return Tiling(
        coords=coords,
        reads=(whole(node, 0), whole(node, 1), Access(2, ((lo, hi), (0, width))), whole(node, 3)),
        writes=(Access(4, ((0, tokens), (lo, hi))),),
        weights=((),) * len(lo),
        cost=np.asarray((hi - lo) * width * (element + 2 * tokens * heads / FLOPS_PER_BYTE), np.float64),
        scratch=4 * SCORE_KEYS * width,
    )


def cpu(node: OpNode) -> str:
    """The call of `index_score` with the node's shapes and strides."""
    query, weight, cache, _, scores = node.operands
    _, heads, width = query.shape
    return (
        f"index_score<{heads}, {width}, {node.attrs['topk']}>(c, c.tokens(0), {cpp_context(node)}, "
        f"c.arg<const float>(0), {query.strides[0]}, {query.strides[1]}, c.arg<const float>(1), {weight.strides[0]}, "
        f"c.arg<const {CPP_TYPES[cache.dtype]}>(2), {cache.strides[0]}, c.arg<const int32_t>(3)[0], "
        f"c.arg<float>(4), {scores.strides[0]});"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """The eager value of a node."""
    query, weight, cache, position = inputs
    topk = node.attrs["topk"]
    if Context.of(node) is None:
        y: torch.Tensor = index_score(query, weight, cache, position, topk)
        return y
    # As if the last row held the token's own position; then only what the token doesn't see is to be taken out.
    y = index_score(query, weight, cache, position.new_tensor([cache.shape[0] - 1]), 0)
    for t in range(len(y)):
        context = int(position[0]) + t + 1
        y[t, rows_of(node, context) if context > topk else 0 :] = torch.nan
    return y


def reads(node: OpNode) -> Mapping[int, RowsRead]:
    """Every row of the context, once a choice is needed."""
    return {2: RowsRead(above=int(node.attrs["topk"]))}


def work(node: OpNode, tiles: Indices, context: int) -> TaskWork:
    """What tasks do at a context: nothing while no choice is needed."""
    query, cache = node.inputs[0], node.inputs[2]
    _, heads, width = query.shape
    rows = rows_of(node, context) if context > node.attrs["topk"] else 0
    seen = np.clip(rows - tiles[:, 0], 0, tiles[:, 1] - tiles[:, 0])
    read = seen * width * DTYPE_BYTES[cache.dtype]
    return TaskWork(seen + np.where(seen > 0, heads * (width + 1), 0), seen * heads * width, read, read)


def by_context(distribution: Distribution, node: OpNode, split: Split) -> None:
    """Each device scores the positions of its own blocks."""
    query, weight, cache, position = node.inputs
    (scores,) = node.outputs
    for device, context, own in parts_of(node, split):
        keys = distribution.shard(cache.tensor, device, context)
        result = distribution.make_shard(scores.tensor, device, context, (scores.shape[0], keys.shape[0]))
        distribution.add(own, device, (query, weight, keys, position), (), (result,), private=True)


register(
    TileOp(
        "index_score",
        tile,
        cpu,
        reference,
        gpu=gpu,
        reads=reads,
        work=work,
        context_rule=by_context,
        partly_written=True,
    )
)
