"""expert_linear: for each slot the products of all tokens with the matrix of the expert that the slot holds.

The fuse pass folds into it what it folds into linear: the RMS norm of its input (`attrs["norm"]` = eps), a second
weight of the same shape, and an elementwise epilogue (`attrs["epilogue"]`) whose extra inputs have the output's shape.
Inputs, in order: x, the folded norm's weight if there is one, expert, the epilogue's extra inputs.
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
    cpu_epilogue,
    cpu_input,
    epilogue_inputs,
    norm_reads,
    norm_scratch,
    normed_input,
)
from tilecompile.runtime.weight_formats import FORMATS

PER_TOKEN = "per_token"

OWN = 2
"""Inputs of the op itself: x and expert."""


@torch.library.custom_op("tilecompile::expert_linear", mutates_args=())
def expert_linear(x: torch.Tensor, expert: torch.Tensor, weight: torch.Tensor, per_token: int = 0) -> torch.Tensor:
    """y[t, s] = weight[expert[s]] · x[t]; slots with expert -1 are inactive: zeros here, left unwritten by the body.

    x: f32 [T, K], expert: i32 [1, slots], weight: [E, N, K]; returns f32 [T, slots, N], accumulated in f32. `per_token`
    are the slots that the rows are cut for (0: all): with those of one token, steps of any size read the same tiles.
    """
    y = x.new_zeros((x.shape[0], expert.shape[1], weight.shape[1]))
    for slot, e in enumerate(expert[0].tolist()):
        if e >= 0:
            y[:, slot] = x @ weight[e].to(x.dtype).T
    return y


@expert_linear.register_fake
def _(x: torch.Tensor, expert: torch.Tensor, weight: torch.Tensor, per_token: int = 0) -> torch.Tensor:
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
    expert = Access(epilogue_begin(node) - 1, ((0, 1), (slot, slot + 1)))
    names = tuple(w.tensor for w in node.weights)
    stored = FORMATS[weight.dtype]
    tiles = [
        WeightTile(names, 0, weight.shape[0], int(a), int(b), weight.shape[2], gathered=True)
        for a, b in pairwise(bounds)
    ]
    return Tiling(
        coords=coords,
        reads=(*norm_reads(node), expert, *(Access(i, box) for i in epilogue_inputs(node))),
        writes=(Access(len(node.inputs), box),),
        weights=tuple(((t, s),) for s in range(slots) for t in tiles),
        cost=np.asarray(stored.number_bytes(hi - lo, weight.shape[2]) * len(names), np.float64),
        scratch=norm_scratch(node),
    )


def cpu(node: OpNode) -> str:
    """The call of `expert_linear_rows` with the node's shapes, prologue and epilogue; nothing for an inactive slot."""
    x, weight = node.inputs[0], node.weights[0]
    source, stride = cpu_input(node)
    first = epilogue_begin(node)
    epilogue = cpu_epilogue(node, first, lambda v: f"t * {v.strides[0]} + slot * {v.strides[1]} + row")
    return (
        f"const int slot = c.tile(2), expert = c.arg<const int32_t>({first - 1})[slot];\n"
        f"  if (expert < 0) return;\n"
        f"  const float* x = {source};\n"
        f"  expert_linear_rows<{x.shape[0]}, {x.shape[1]}, {len(node.weights)}, {FORMATS[weight.dtype].cpp}>"
        f"(c, expert, x, {stride}, [&](const v16* a, int t, int row, int n) {{\n{epilogue}\n  }});"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """The eager value of a node with all that was folded into it, zeros in inactive slots."""
    x = normed_input(node, inputs)
    expert = inputs[epilogue_begin(node) - 1]
    extra = [inputs[i] for i in epilogue_inputs(node)]
    products = [expert_linear(x, expert, w) for w in weights]
    y = evaluate(node.attrs.get("epilogue", ("acc", 0)), products, extra)
    return torch.where((expert[0] >= 0)[None, :, None], y, 0.0)


def unwritten(node: OpNode, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Inactive slots, which the reference fills with zeros and the body leaves alone."""
    return (inputs[epilogue_begin(node) - 1][0] < 0)[None, :, None]


def slots(node: OpNode) -> View:
    """The expert of each slot: i32 [1, slots]."""
    return node.inputs[epilogue_begin(node) - 1]


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
