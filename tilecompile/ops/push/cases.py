"""Random test cases of push."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case, normal


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Floats and indices, odd sizes, windows of wider tensors, sizes that are split."""
    for dtype in ("f32", "i32"):
        for tokens, size, width, offset in ((1, 1, 1, 0), (3, 37, 37, 0), (3, 37, 64, 5), (1, 9001, 9100, 64)):
            x, y = View("x", (tokens, size), (width, 1), offset, dtype), View.of("y", (tokens, size), dtype)
            whole = View.of("x", (tokens * width,), dtype)
            data = (
                normal(generator, whole)
                if dtype == "f32"
                else torch.randint(-(2**31), 2**31 - 1, whole.shape, generator=generator, dtype=torch.int32)
            )
            yield Case(OpNode("push", "push", (x,), (), (y,)), {"x": data}, 0.0)
