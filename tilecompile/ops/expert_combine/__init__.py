"""expert_combine: each token's weighted sum over its slots of the slot's activations times the slot's expert matrix.

The fuse pass may fold an elementwise epilogue into it (`attrs["epilogue"]`), such as the residual and the shared
expert's result. Inputs, in order: x, expert, slot_weight, the epilogue's extra inputs, which have the output's shape.
"""

from __future__ import annotations

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import PANEL, Access, Tiling, WeightTile, split, whole
from tilecompile.ops.base import SplitAxis, TileOp, register
from tilecompile.ops.elementwise import evaluate
from tilecompile.ops.expert_combine.gpu import gpu
from tilecompile.ops.linear import cpu_columns, cpu_epilogue, epilogue_inputs, output_writes
from tilecompile.runtime.weight_formats import FORMATS

OWN = 3
"""Inputs of the op itself: x, expert and slot_weight."""


@torch.library.custom_op("tilecompile::expert_combine", mutates_args=())
def expert_combine(
    x: torch.Tensor, expert: torch.Tensor, slot_weight: torch.Tensor, weight: torch.Tensor, per_token: int = 0
) -> torch.Tensor:
    """y[t] = sum over slots s, in order, of slot_weight[t, s] · (weight[expert[s]] · x[t, s]).

    Inactive slots (expert -1) and, for each token, slots of weight zero are skipped, whatever x holds there.
    x: f32 [T, slots, K], expert: i32 [1, slots], slot_weight: f32 [T, slots], weight: [E, N, K]; returns f32 [T, N],
    accumulated in f32. `per_token` are the slots that a token uses, 0: all; the result doesn't depend on it.
    """
    y = x.new_zeros((x.shape[0], weight.shape[1]))
    for slot, e in enumerate(expert[0].tolist()):
        if e >= 0:
            scale = slot_weight[:, slot, None]
            y = torch.where(scale != 0, y + scale * (x[:, slot] @ weight[e].to(x.dtype).T), y)
    return y


@expert_combine.register_fake
def _(
    x: torch.Tensor, expert: torch.Tensor, slot_weight: torch.Tensor, weight: torch.Tensor, per_token: int = 0
) -> torch.Tensor:
    return torch.empty((x.shape[0], weight.shape[1]), dtype=x.dtype, device=x.device)


def tile(node: OpNode, parts: int) -> Tiling:
    """Row tiles over all slots; the coordinates are (first row, one past the last), weight run i is that of slot i."""
    x, weight = node.inputs[0], node.weights[0]
    tokens, slots, cols = x.shape
    bounds = split(weight.shape[1], parts)
    lo, hi = bounds[:-1], bounds[1:]
    coords = np.zeros((len(lo), 4), np.int32)
    coords[:, 0], coords[:, 1] = lo, hi
    box = ((0, tokens), (lo, hi))
    stored = FORMATS[weight.dtype]
    tiles = [
        WeightTile((weight.tensor,), 0, weight.shape[0], int(a), int(b), cols, gathered=True)
        for a, b in zip(lo, hi, strict=True)
    ]
    return Tiling(
        coords=coords,
        reads=(*(whole(node, i) for i in range(OWN)), *(Access(i, box) for i in epilogue_inputs(node))),
        writes=output_writes(node, box),
        weights=tuple(tuple((t, slot) for slot in range(slots)) for t in tiles),
        cost=np.asarray(slots * stored.number_bytes(hi - lo, cols), np.float64),
        scratch=4 * tokens * PANEL * max(t.panels for t in tiles),
    )


def cpu(node: OpNode) -> str:
    """The call of `expert_combine_rows` with the node's shapes and epilogue."""
    x, _, slot_weight = node.inputs[:OWN]
    slots = x.shape[1]
    epilogue = cpu_epilogue(node, OWN, lambda v: f"t * {v.strides[0]} + row")
    return (
        f"expert_combine_rows<{FORMATS[node.weights[0].dtype].cpp}>(c, c.tokens(0), {cpu_columns(node)}, {slots}, "
        f"c.arg<const float>(0), {x.strides[0]}, {x.strides[1]}, c.arg<const int32_t>(1), "
        f"c.arg<const float>(2), {slot_weight.strides[0]}, [&](const v16* a, int t, int row, int n) {{\n"
        f"{epilogue}\n  }});"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """The eager value of a node with its epilogue."""
    extra = [inputs[i] for i in epilogue_inputs(node)]
    return evaluate(node.attrs.get("epilogue", ("acc", 0)), [expert_combine(*inputs[:OWN], weights[0])], extra)


SPLIT_AXES = {"rows": SplitAxis(weights=1, output=1, extra=1), "cols": SplitAxis({0: 2}, weights=2)}

register(
    TileOp(
        "expert_combine",
        tile,
        cpu,
        reference,
        weight_args=("weight",),
        headers=("expert_linear",),
        gpu=gpu,
        own_inputs=OWN,
        takes_epilogue=True,
        split_axes=SPLIT_AXES,
        stores_to_peers=True,
        slots=lambda node: node.inputs[1],
    )
)
