"""Random test cases of share_selection."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.context import Context
from tilecompile.ops.testing import Case


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Full selections and part of one, none, positions that follow and none, no room for all of them, shards."""
    for tokens, rows, width, chosen, since, position, context in (
        (1, 1, 66, 64, 700, 702, None),
        (1, 1, 300, 21, 20, 21, None),
        (3, 5, 40, 38, 90, 91, None),
        (3, 3, 20, 0, 30, 28, None),
        (8, 8, 270, 260, 900, 901, (1, 2, 4)),
        (3, 4, 17, 9, 50, 53, (2, 3, 2)),
        (1, 1, 10, 10, 40, 47, (0, 2, 4)),
    ):
        state, at = View.of("state", (rows, 1 + width), "i32"), View.of("position", (1,), "i32")
        kept = torch.full(state.shape, -1, dtype=torch.int32)
        known = since + 1 if context is None else Context(*context).rows(since + 1)
        for t in range(rows):
            kept[t, 0] = since
            some = torch.randperm(known, generator=generator)[:chosen].sort().values
            kept[t, 1 : 1 + len(some)] = some
        outputs = (View.of("selection", (tokens, width), "i32"), View.of("last", (tokens, 1), "i32"))
        tensors = {"state": kept, "position": torch.tensor([position], dtype=torch.int32)}
        attrs = {"tokens": tokens, "context": context}
        yield Case(OpNode("share", "share_selection", (state, at), (), outputs, attrs), tensors, 0)
