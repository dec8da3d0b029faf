"""Random test cases of embed."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case, normal


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Odd sizes, T = 1 and 3, both table types, a size that is split; the first and the last row are looked up."""
    for tokens, vocab, cols, dtype in (
        (1, 50, 64, "f32"),
        (3, 7, 37, "bf16"),
        (3, 20, 2051, "bf16"),
        (8, 9, 531, "f32"),
    ):
        ids, table = View.of("ids", (tokens,), "i32"), View.of("table", (vocab, cols), dtype)
        drawn = torch.randint(vocab, (tokens,), generator=generator, dtype=torch.int32)
        drawn[-1] = vocab - 1
        if tokens > 1:
            drawn[0] = 0
        tensors = {"ids": drawn, "table": normal(generator, table)}
        yield Case(OpNode("embed", "embed", (ids, table), (), (View.of("y", (tokens, cols), "f32"),)), tensors, 0)
