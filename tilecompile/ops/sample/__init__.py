"""sample: the id that follows a token, by a request's parameters (`runtime/format/sampling.py`).

It doesn't depend on how the step came about: the same logits, ids before them and parameters give the same id, whatever
the other tokens of the step are. `reference.py` states the rules.
"""

from __future__ import annotations

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import Access, Tiling, whole
from tilecompile.ops.base import TileOp, register
from tilecompile.ops.sample.gpu import gpu
from tilecompile.ops.sample.reference import choose
from tilecompile.runtime.format import INTERVAL_BITS, SAMPLING


@torch.library.custom_op("tilecompile::sample", mutates_args=())
def sample(
    logits: torch.Tensor,
    ids: torch.Tensor,
    position: torch.Tensor,
    sampling: torch.Tensor,
    bias: torch.Tensor,
    counts: torch.Tensor,
    shift: int = 0,
) -> torch.Tensor:
    """The id after each of the step's tokens, or after the last one where there is one row of logits.

    logits: f32 [T, V] or [1, V]; ids: i32 [T], the first of them `shift` positions behind position: i32 [1]; sampling:
    i32 [SAMPLING_WORDS], the words of the record; bias: f32 [V]; counts: i32 [V]. Returns i32 [T] or [1].
    """
    record = sampling.contiguous().numpy().view(SAMPLING.dtype)[0]
    begin, tokens = int(position[0]) + shift, ids.numpy()
    chosen = [
        choose(
            record, row.numpy(), bias.numpy(), counts.numpy(), tokens if len(logits) == 1 else tokens[: r + 1], begin
        )
        for r, row in enumerate(logits)
    ]
    return torch.tensor(chosen, dtype=torch.int32)


@sample.register_fake
def _(
    logits: torch.Tensor,
    ids: torch.Tensor,
    position: torch.Tensor,
    sampling: torch.Tensor,
    bias: torch.Tensor,
    counts: torch.Tensor,
    shift: int = 0,
) -> torch.Tensor:
    return torch.empty((logits.shape[0],), dtype=torch.int32, device=logits.device)


def tile(node: OpNode, parts: int) -> Tiling:
    """One task a row of the logits."""
    rows, vocab = node.inputs[0].shape
    row = np.arange(rows)
    ids = (0, row + 1 if rows > 1 else node.inputs[1].shape[0])
    return Tiling(
        coords=np.stack([row, *3 * (0 * row,)], axis=1).astype(np.int32),
        reads=(Access(0, ((row, row + 1), (0, vocab))), Access(1, (ids,)), *(whole(node, i) for i in range(2, 6))),
        writes=(Access(6, ((row, row + 1),)),),
        weights=((),) * rows,
        cost=np.full(rows, 4.0 * vocab),
        scratch=8 * (1 << INTERVAL_BITS) + 16 * vocab,
    )


def cpu(node: OpNode) -> str:
    """The call of `sample` with the node's shapes."""
    logits, ids = node.inputs[:2]
    rows, vocab = logits.shape
    return (
        f"sample<{vocab}>(c, c.tokens(1), {str(rows < ids.shape[0]).lower()}, "
        f"{node.attrs['shift']}, c.arg<const float>(0), {logits.strides[0]}, c.arg<int32_t>(6));"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """The eager value of a node."""
    y: torch.Tensor = sample(*inputs, node.attrs["shift"])
    return y


register(TileOp("sample", tile, cpu, reference, headers=("argmax",), gpu=gpu, samples=True))
