"""Random test cases of last_token."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case, normal


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Odd widths, one token and several, a window of wider rows, ids."""
    for tokens, width, wide, dtype in ((1, 64, 64, "f32"), (3, 37, 41, "f32"), (5, 19, 19, "i32")):
        x = View("x", (tokens, width), (wide, 1), wide - width, dtype)
        node = OpNode("last", "last_token", (x,), (), (View.of("y", (1, width), dtype),))
        yield Case(node, {"x": normal(generator, View.of("x", (tokens, wide), dtype), 100.0)}, 0)
