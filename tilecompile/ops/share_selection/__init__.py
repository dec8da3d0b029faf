"""share_selection: what an earlier token selected, for tokens that come after it, and all positions from it on.

A draft attends to what the first draft of the round selected, and to the drafts since, itself included. With
`attrs["context"]` (see `ops/context.py`) selections are a shard's rows.
"""

from __future__ import annotations

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.placement import Split
from tilecompile.ir.tiling import Access, Tiling, whole
from tilecompile.ops.base import Distribution, TileOp, register
from tilecompile.ops.context import Context, cpp_context, parts_of, rows_of
from tilecompile.ops.share_selection.gpu import gpu


@torch.library.custom_op("tilecompile::share_selection", mutates_args=())
def share_selection(state: torch.Tensor, position: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Selection i32 [T, W] of T = `tokens` tokens from `position` on, and the number of its last entry, i32 [T, 1].

    state: i32 [S, 1 + W] of `keep_selection`: a position and what it selected; position: i32 [1]. Token t gets row t's
    selection and the positions after that row's, up to position + t, as far as there is room; then -1.
    """
    return _shared(state[:tokens], position, None)


@share_selection.register_fake
def _(state: torch.Tensor, position: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    return state.new_empty((tokens, state.shape[1] - 1)), state.new_empty((tokens, 1))


def _shared(state: torch.Tensor, position: torch.Tensor, node: OpNode | None) -> tuple[torch.Tensor, torch.Tensor]:
    selection, last = state[:, 1:].clone(), state.new_empty((len(state), 1))
    for t, row in enumerate(selection):
        taken = int((row >= 0).sum())
        since, until = (p + 1 if node is None else rows_of(node, p + 1) for p in (int(state[t, 0]), int(position) + t))
        more = torch.arange(since, max(since, until), dtype=torch.int32)[: len(row) - taken]
        row[taken : taken + len(more)] = more
        last[t] = taken + len(more) - 1
    return selection, last


def tile(node: OpNode, parts: int) -> Tiling:
    """One task: a row of numbers a token. Coordinate 3 is the shard."""
    state, _ = node.inputs
    context, tokens = Context.of(node), node.outputs[0].shape[0]
    return Tiling(
        coords=np.array([[0, 0, 0, context.index if context else 0]], np.int32),
        reads=(Access(0, ((0, tokens), (0, state.shape[1]))), whole(node, 1)),
        writes=(whole(node, 2), whole(node, 3)),
        weights=((),),
        cost=np.array([8.0 * tokens * state.shape[1]]),
    )


def cpu(node: OpNode) -> str:
    """The call of `share_selection`."""
    state, _, selection, last = node.operands
    return (
        f"share_selection(c.tokens(2), {cpp_context(node)}, c.arg<const int32_t>(0), {state.strides[0]}, "
        f"*c.arg<const int32_t>(1), c.arg<int32_t>(2), {selection.shape[1]}, {selection.strides[0]}, "
        f"c.arg<int32_t>(3), {last.strides[0]});"
    )


def reference(
    node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The eager value of a node."""
    state, position = inputs
    return _shared(state[: node.outputs[0].shape[0]], position, node)


def by_context(distribution: Distribution, node: OpNode, split: Split) -> None:
    """Each device goes on with the rows of its own blocks."""
    state, position = node.inputs
    selection, last = node.outputs
    for device, context, own in parts_of(node, split):
        kept = distribution.make_shard(state.tensor, device, context, state.shape)
        result = distribution.make_shard(selection.tensor, device, context, selection.shape)
        distribution.add(own, device, (kept, position), (), (result, last), private=True)


register(TileOp("share_selection", tile, cpu, reference, gpu=gpu, context_rule=by_context))
