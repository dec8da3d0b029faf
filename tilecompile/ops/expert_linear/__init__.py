"""expert_linear: for each slot the products of the tokens that use it with the matrix of the expert that it holds.

The fuse pass folds into it what it folds into linear: the RMS norm of its input (`attrs["norm"]` = eps), a second
weight of the same shape, and an elementwise epilogue (`attrs["epilogue"]`) whose extra inputs have the output's shape.
Inputs, in order: x, the folded norm's weight if there is one, expert, slot_weight, the epilogue's extra inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ir.tiling import PANEL, Access, Tiling, WeightTile, split
from tilecompile.ops.base import SplitAxis, TileOp, epilogue_begin, register
from tilecompile.ops.elementwise import evaluate
from tilecompile.ops.expert_linear.gpu import gpu
from tilecompile.ops.linear import (
    cpu_columns,
    cpu_epilogue,
    cpu_input,
    epilogue_inputs,
    norm_reads,
    norm_scratch,
    normed_input,
)
from tilecompile.runtime.weight_formats import FORMATS

PER_TOKEN = "per_token"

OWN = 3
"""Inputs of the op itself: x, expert and slot_weight."""


@torch.library.custom_op("tilecompile::expert_linear", mutates_args=())
def expert_linear(
    x: torch.Tensor, expert: torch.Tensor, slot_weight: torch.Tensor, weight: torch.Tensor, per_token: int = 0
) -> torch.Tensor:
    """y[t, s] = weight[expert[s]] · x[t] where token t uses slot s: where its weight for the slot isn't 0.

    Slots with expert -1 are inactive. What isn't used is zero here and left unwritten by the body. x: f32 [T, K],
    expert: i32 [1, slots], slot_weight: f32 [T, slots], weight: [E, N, K]; returns f32 [T, slots, N], accumulated in
    f32. `per_token` are the slots that the rows are cut for (0: all): with those of one token, steps of any size read
    the same tiles.
    """
    y = x.new_zeros((x.shape[0], expert.shape[1], weight.shape[1]))
    for slot, e in enumerate(expert[0].tolist()):
        if e >= 0:
            y[:, slot] = x @ weight[e].to(x.dtype).T
    return torch.where((slot_weight != 0)[:, :, None], y, 0.0)


@expert_linear.register_fake
def _(
    x: torch.Tensor, expert: torch.Tensor, slot_weight: torch.Tensor, weight: torch.Tensor, per_token: int = 0
) -> torch.Tensor:
    return torch.empty((x.shape[0], expert.shape[1], weight.shape[1]), dtype=x.dtype, device=x.device)


def row_tiles(slots: int, rows: int, parts: int) -> int:
    """How many pieces to cut the rows into: the fewest for which the busiest of `parts` workers has least to do."""
    panels = -(-rows // PANEL)
    return min(range(1, min(panels, parts) + 1), key=lambda n: (-(-slots * n // parts) * -(-panels // n), n))


def tile(node: OpNode, parts: int) -> Tiling:
    """Row tiles of each slot, slot by slot; the coordinates are (first row, one past the last, slot)."""
    tokens, slots, rows = node.outputs[0].shape
    weight = node.weights[0]
    bounds = split(rows, row_tiles(node.attrs.get(PER_TOKEN) or slots, rows, parts))
    lo, hi = np.tile(bounds[:-1], slots), np.tile(bounds[1:], slots)
    slot = np.repeat(np.arange(slots), len(bounds) - 1)
    coords = np.zeros((len(lo), 4), np.int32)
    coords[:, 0], coords[:, 1], coords[:, 2] = lo, hi, slot
    box = ((0, tokens), (slot, slot + 1), (lo, hi))
    first = epilogue_begin(node)
    expert = Access(first - 2, ((0, 1), (slot, slot + 1)))
    slot_weight = Access(first - 1, ((0, tokens), (slot, slot + 1)))
    names = tuple(w.tensor for w in node.weights)
    stored = FORMATS[weight.dtype]
    tiles = [
        WeightTile(names, 0, weight.shape[0], int(a), int(b), weight.shape[2], gathered=True)
        for a, b in pairwise(bounds)
    ]
    return Tiling(
        coords=coords,
        reads=(*norm_reads(node), expert, slot_weight, *(Access(i, box) for i in epilogue_inputs(node))),
        writes=(Access(len(node.inputs), box),),
        weights=tuple(((t, s),) for s in range(slots) for t in tiles),
        cost=np.asarray(stored.number_bytes(hi - lo, weight.shape[2]) * len(names), np.float64),
        scratch=norm_scratch(node),
    )


def cpu(node: OpNode) -> str:
    """The call of `expert_linear_rows` with the node's shapes, prologue and epilogue; nothing for an inactive slot."""
    weight = node.weights[0]
    source, stride = cpu_input(node)
    first = epilogue_begin(node)
    each = node.inputs[first - 1].strides[0]
    epilogue = cpu_epilogue(node, first, lambda v: f"t * {v.strides[0]} + slot * {v.strides[1]} + row")
    return (
        f"const int slot = c.tile(2), expert = c.arg<const int32_t>({first - 2})[slot], tokens = c.tokens(0);\n"
        f"  if (expert < 0) return;\n"
        f"  const float* slot_weight = c.arg<const float>({first - 1}) + slot;\n"
        f"  const Tokens x = slot_tokens(tokens, {source}, {stride}, slot_weight, {each});\n"
        f"  expert_linear_rows<{len(node.weights)}, {FORMATS[weight.dtype].cpp}>(c, expert, x, {cpu_columns(node)}, "
        f"[&](const v16* a, int t, int row, int n) {{\n{epilogue}\n  }});"
    )


def slot_inputs(node: OpNode, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a node's inputs, expert and slot_weight."""
    first = epilogue_begin(node)
    return inputs[first - 2], inputs[first - 1]


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """The eager value of a node with all that was folded into it, zeros where a token doesn't use a slot."""
    x = normed_input(node, inputs)
    extra = [inputs[i] for i in epilogue_inputs(node)]
    products = [expert_linear(x, *slot_inputs(node, inputs), w) for w in weights]
    y = evaluate(node.attrs.get("epilogue", ("acc", 0)), products, extra)
    return torch.where(unwritten(node, inputs), 0.0, y)


def unwritten(node: OpNode, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Where a token doesn't use a slot, or no token does: the reference gives zeros, the body leaves it alone."""
    expert, slot_weight = slot_inputs(node, inputs)
    return ((expert < 0) | (slot_weight == 0))[:, :, None]


def slots(node: OpNode) -> View:
    """The expert of each slot: i32 [1, slots]."""
    return node.inputs[epilogue_begin(node) - 2]


register(
    TileOp(
        "expert_linear",
        tile,
        cpu,
        reference,
        weight_args=("weight",),
        headers=("linear",),
        gpu=gpu,
        own_inputs=OWN,
        takes_epilogue=True,
        takes_norm=True,
        split_axes={"rows": SplitAxis(weights=1, output=2, extra=2)},
        slots=slots,
        partly_written=True,
        unwritten=unwritten,
    )
)
