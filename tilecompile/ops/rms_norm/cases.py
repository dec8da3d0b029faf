"""Random test cases of rms_norm."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case, normal


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Whole rows, and a window of wider rows, with odd sizes."""
    for tokens, size, width in ((1, 64, 64), (3, 37, 37), (2, 50, 83)):
        x = View("x", (tokens, size), (width, 1), width - size, "f32")
        weight, y = View.of("w", (size,), "f32"), View.of("y", (tokens, size), "f32")
        tensors = {"x": normal(generator, View.of("x", (tokens, width), "f32")), "w": normal(generator, weight)}
        yield Case(OpNode("rms_norm", "rms_norm", (x, weight), (), (y,), {"eps": 1e-5}), tensors)
