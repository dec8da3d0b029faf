"""Random test cases of keep_selection."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case


def cases(generator: torch.Generator) -> Iterator[Case]:
    """One token and several, fewer than the state has rows, a selection as wide as the state and narrower ones."""
    for tokens, rows, width, entries in ((1, 1, 64, 64), (3, 7, 300, 257), (8, 8, 19, 5)):
        state, at = View.of("state", (rows, 1 + width), "i32"), View.of("position", (1,), "i32")
        selection = View.of("selection", (tokens, entries), "i32")
        tensors = {
            name: torch.randint(-1, 5000, shape, generator=generator, dtype=torch.int32)
            for name, shape in (("state", state.shape), ("selection", selection.shape), ("position", (1,)))
        }
        yield Case(OpNode("keep", "keep_selection", (state, selection, at), (), ()), tensors, 0)
