"""mla_attention: latent attention of all heads over the selected positions, in absorbed form.

A cache row is a latent (R values) and a rotated key (P values); it serves all heads as key, and its latent as value.

With `attrs["context"]` (see `ops/context.py`) the cache and the selection hold only some blocks of positions, and with
`attrs["part"]` the selection is a range of its entries (`split_over_workers.py`). The result is then a part of the
softmax, f32 [T, H, R + 2], for `attention_merge`: the sums of the latents weighted by e^(score - largest score), the
largest score, and the sum of the weights; all zero without a selected position. (FlashDecoding: Dao, Haziza, Massa,
Sizov 2023; merging by maxima: Milakov and Gimelshein, arXiv 1805.02867.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ir.placement import Split
from tilecompile.ir.tiling import Access, Tiling, split, whole
from tilecompile.ops.attention_merge import ATTENTION_MERGE
from tilecompile.ops.base import (
    CPP_TYPES,
    Distribution,
    Indices,
    RowsRead,
    SplitAxis,
    TaskWork,
    TileOp,
    WorkerParts,
    register,
)
from tilecompile.ops.context import Context, is_part, parts_of, rows_of
from tilecompile.ops.mla_attention.gpu import gpu
from tilecompile.runtime.format import DTYPE_BYTES
from tilecompile.runtime.names import MERGE, PART

FLOPS_PER_BYTE = 4.0
"""About what a core computes while it reads a byte; converts arithmetic into cost."""

ENTRIES, UNIT = 64, 16
"""Fewest entries of the selection in a part: with fewer, a task and its merging cost more than they save. Parts are
multiples of UNIT."""


@torch.library.custom_op("tilecompile::mla_attention", mutates_args=())
def mla_attention(
    q_latent: torch.Tensor,
    q_rope: torch.Tensor,
    cache: torch.Tensor,
    selection: torch.Tensor,
    position: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """y[t, h] = Σ_j softmax_j(scale · [q_latent, q_rope][t, h] · row_j) · latent_j over the selected rows j.

    q_latent: f32 [T, H, R], q_rope: f32 [T, H, P], cache: f32 or bf16 [S, R + P], selection: i32 [T, topk], whose first
    min(topk, position + t + 1) entries count, position: i32 [1]; returns f32 [T, H, R].
    """
    rows = cache[selection.clamp(min=0)].to(q_latent.dtype)
    context = (position + 1 + torch.arange(selection.shape[0], device=cache.device))[:, None]
    counts = torch.arange(selection.shape[1], device=cache.device) < context
    query = torch.cat([q_latent, q_rope], 2)
    scores = torch.einsum("thd,tjd->thj", query, rows) * scale
    weights = torch.softmax(scores.masked_fill(~counts[:, None], -torch.inf), 2)
    return torch.einsum("thj,tjr->thr", weights, rows[:, :, : q_latent.shape[2]])


@mla_attention.register_fake
def _(
    q_latent: torch.Tensor,
    q_rope: torch.Tensor,
    cache: torch.Tensor,
    selection: torch.Tensor,
    position: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    return torch.empty(q_latent.shape, dtype=q_latent.dtype, device=q_latent.device)


def tile(node: OpNode, parts: int) -> Tiling:
    """Head ranges; the coordinates are (first head, one past the last). Each task gathers the rows for itself."""
    q_latent, q_rope, cache, selection, _ = node.inputs
    tokens, heads, latent = q_latent.shape
    topk = selection.shape[1]
    bounds = split(heads, parts, 1)
    lo, hi = bounds[:-1], bounds[1:]
    coords = np.zeros((len(lo), 4), np.int32)
    coords[:, 0], coords[:, 1] = lo, hi
    width = cache.shape[1]
    gathered = tokens * topk * width * DTYPE_BYTES[cache.dtype]
    flops = 2.0 * tokens * topk * (width + latent) * (hi - lo)
    most = int((hi - lo).max())
    return Tiling(
        coords=coords,
        reads=(
            Access(0, ((0, tokens), (lo, hi), (0, latent))),
            Access(1, ((0, tokens), (lo, hi), (0, q_rope.shape[2]))),
            whole(node, 2),
            whole(node, 3),
            whole(node, 4),
        ),
        writes=(Access(5, ((0, tokens), (lo, hi), (0, node.outputs[0].shape[2]))),),
        weights=((),) * len(lo),
        cost=np.asarray(gathered + flops / FLOPS_PER_BYTE, np.float64),
        scratch=4 * most * (-(-topk // 16) * 16 + 17),
    )


def cpu(node: OpNode) -> str:
    """The call of `mla_attention` with the node's shapes and strides."""
    q_latent, q_rope, cache, selection, _, y = node.operands
    part = "true" if is_part(node) else "false"
    return (
        f"mla_attention<{q_latent.shape[2]}, {q_rope.shape[2]}, {selection.shape[1]}, {part}>(c, c.tokens(0), "
        f"c.arg<const float>(0), {q_latent.strides[0]}, {q_latent.strides[1]}, "
        f"c.arg<const float>(1), {q_rope.strides[0]}, {q_rope.strides[1]}, "
        f"c.arg<const {CPP_TYPES[cache.dtype]}>(2), {cache.strides[0]}, "
        f"c.arg<const int32_t>(3), {selection.strides[0]}, c.arg<const int32_t>(4)[0], "
        f"{float(node.attrs['scale'])!r}f, c.arg<float>(5), {y.strides[0]}, {y.strides[1]});"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """The eager value of a node."""
    if not is_part(node):
        y: torch.Tensor = mla_attention(*inputs, node.attrs["scale"])
        return y
    q_latent, q_rope, cache, selection, _ = inputs
    y = q_latent.new_zeros((*q_latent.shape[:2], q_latent.shape[2] + 2))
    queries = torch.cat([q_latent, q_rope], 2)
    for t, query in enumerate(queries):
        rows = cache[selection[t][selection[t] >= 0]].to(query.dtype)
        if len(rows):
            scores = query @ rows.T * node.attrs["scale"]
            largest = scores.amax(1, keepdim=True)
            e = torch.exp(scores - largest)
            y[t] = torch.cat([e @ rows[:, : q_latent.shape[2]], largest, e.sum(1, keepdim=True)], 1)
    return y


def reads(node: OpNode) -> Mapping[int, RowsRead]:
    """The selected rows; selected positions are taken to be spread evenly over the shards of the context."""
    selection = node.inputs[3]
    if Context.of(node) is None:
        return {2: RowsRead(selection.shape[1], first=selection.offset)}
    return {2: RowsRead(int(node.attrs["topk"]))}


def work(node: OpNode, tiles: Indices, context: int) -> TaskWork:
    """What tasks do at a context: each reads all selected rows for its heads."""
    q_latent, q_rope, cache, selection = node.inputs[:4]
    shard, most = Context.of(node), int(node.attrs.get("topk", selection.shape[1]))  # of all shards together
    if shard and context > most:  # which positions are selected isn't known: equally many of each shard
        most = -(-most // shard.count)
    first = selection.offset if shard is None else 0  # of the selection's entries; those that count come first
    heads, chosen = tiles[:, 1] - tiles[:, 0], max(0, min(rows_of(node, context) - first, most))
    latent, width = q_latent.shape[2], q_latent.shape[2] + q_rope.shape[2]
    read = np.full(len(tiles), float(chosen * width * DTYPE_BYTES[cache.dtype]))
    distinct = np.where(np.arange(len(tiles)) == 0, read, 0.0)
    elements = chosen + heads * (chosen + width + latent)
    return TaskWork(elements, chosen * heads * (width + latent), read, distinct)


def by_context(distribution: Distribution, node: OpNode, split: Split) -> None:
    """Each device attends to the selected positions of its own blocks, and pushes the parts of all heads.

    They are pushed to the devices that continue with these heads: the split's `adds`.
    """
    q_latent, q_rope, cache, selection, position = node.inputs
    (y,) = node.outputs
    tokens, heads, latent = y.shape
    slots = distribution.make(f"{y.tensor}.parts", (tokens, len(split.parts), heads, latent + 2), y.dtype)
    for device, context, own in parts_of(node, split):
        own = replace(own, role=PART, attrs={**own.attrs, "topk": selection.shape[1]})  # of all shards together
        rows, chosen = (distribution.shard(v.tensor, device, context) for v in (cache, selection))
        inputs = (q_latent, q_rope, rows, chosen, position)
        distribution.add(own, device, inputs, (), (slots.select(1, context.index),))
    name = f"{node.name}.merge"
    merge = replace(node, name=name, op=ATTENTION_MERGE.name, origin=node.undivided, role=MERGE, attrs=node.predicate)
    for part in split.adds:
        result = y.narrow(1, part.begin, part.end)
        distribution.add(merge, part.device, (slots.narrow(2, part.begin, part.end),), (), (result,))


def split_over_workers(node: OpNode, workers: int, name: Callable[[str], str]) -> WorkerParts | None:
    """The heads' attention in parts of the selection's entries, where there are more workers than heads.

    One task a head would read all selected rows alone, while most workers have nothing to do. `attention_merge` adds
    the parts of a head in order.
    """
    *others, selection, position = node.inputs
    (y,) = node.outputs
    tokens, heads, latent = y.shape
    cuts = 1 if is_part(node) else min(workers // heads, selection.shape[1] // ENTRIES)
    if cuts < 2:
        return None
    # A head's parts are contiguous, for the merge that reads them.
    made = View.of(f"%{name('.parts')}", (tokens, heads, cuts, latent + 2), y.dtype)
    by_part = made.swapped(1, 2)
    parts = []
    for i, (begin, end) in enumerate(pairwise(split(selection.shape[1], cuts, UNIT).tolist())):
        inputs, outputs = (*others, selection.narrow(1, begin, end), position), (by_part.select(1, i),)
        part = replace(node, name=name(f".part{i}"), origin=node.undivided, role=PART, inputs=inputs, outputs=outputs)
        parts.append(replace(part, attrs={**node.attrs, "part": True}))
    merge = replace(node, name=name(".merge"), origin=node.undivided, role=MERGE, inputs=(by_part,))
    merge = replace(merge, op=ATTENTION_MERGE.name, attrs=node.predicate)
    return WorkerParts(tuple(parts), merge, made)


register(
    TileOp(
        "mla_attention",
        tile,
        cpu,
        reference,
        gpu=gpu,
        split_axes={"heads": SplitAxis({0: 1, 1: 1}, output=1)},
        reads=reads,
        work=work,
        context_rule=by_context,
        split_over_workers=split_over_workers,
    )
)
