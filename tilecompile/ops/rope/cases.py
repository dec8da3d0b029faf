"""Random test cases of rope."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case, normal


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Whole and partial rotation, the tail of wider heads, T = 1 and 3, odd sizes, one that is split."""
    for tokens, heads, size, rotated, width in (
        (1, 4, 64, 64, 64),
        (3, 5, 64, 32, 256),
        (3, 1, 37, 22, 37),
        (3, 7, 6, 6, 11),
        (3, 33, 128, 64, 128),
        (1, 71, 64, 64, 256),
    ):
        x = View("x", (tokens, heads, size), (heads * width, width, 1), width - size, "f32")
        angles, y = View.of("angles", (tokens, 2, rotated // 2), "f32"), View.of("y", (tokens, heads, size), "f32")
        turn = torch.rand((tokens, rotated // 2), generator=generator) * 6.3
        tensors = {
            "x": normal(generator, View.of("x", (tokens, heads, width), "f32")),
            "angles": torch.stack([turn.cos(), turn.sin()], 1),
        }
        yield Case(OpNode("rope", "rope", (x, angles), (), (y,)), tensors, 1e-6)
