"""Random test cases of keep."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case, normal


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Odd widths, fewer tokens than the state has rows, a window of wider rows, ids."""
    for tokens, rows, width, wide, dtype in ((1, 1, 64, 64, "f32"), (3, 7, 37, 41, "f32"), (5, 5, 19, 19, "i32")):
        state, whole = View.of("state", (rows, width), dtype), View.of("x", (tokens, wide), dtype)
        x = View("x", (tokens, width), (wide, 1), wide - width, dtype)
        drawn = [normal(generator, view, 100.0) for view in (state, whole)]
        yield Case(OpNode("keep", "keep", (state, x), (), ()), dict(zip(("state", "x"), drawn, strict=True)), 0)
