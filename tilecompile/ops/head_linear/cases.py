"""Random test cases of head_linear."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case, normal


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Fewer and more heads than parts, odd sizes, T = 1 and 3, both weight types, heads as windows of wider ones."""
    for tokens, heads, rows, cols, width, dtype in (
        (1, 4, 48, 32, 32, "f32"),
        (3, 3, 37, 53, 60, "bf16"),
        (1, 7, 100, 19, 24, "bf16"),
        (3, 1, 50, 16, 16, "f32"),
    ):
        whole = View.of("x", (tokens, heads, width), "f32")
        x = View("x", (tokens, heads, cols), whole.strides, width - cols, "f32")
        w, y = View.of("w", (heads, rows, cols), dtype), View.of("y", (tokens, heads, rows), "f32")
        tensors = {v.tensor: normal(generator, v) for v in (whole, w)}
        yield Case(OpNode("head_linear", "head_linear", (x,), (w,), (y,)), tensors)
