"""Random test cases of layer_norm."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case, normal


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Whole rows and a window of wider rows, odd sizes, a mean far from 0."""
    for tokens, size, width, mean in ((1, 128, 128, 0.0), (3, 37, 37, 0.5), (2, 50, 83, 3.0), (3, 7, 7, -1.0)):
        x = View("x", (tokens, size), (width, 1), width - size, "f32")
        weight, bias, y = (View.of(n, s, "f32") for n, s in (("w", (size,)), ("b", (size,)), ("y", (tokens, size))))
        tensors = {v.tensor: normal(generator, v) for v in (weight, bias)}
        tensors["x"] = normal(generator, View.of("x", (tokens, width), "f32")) + mean
        yield Case(OpNode("layer_norm", "layer_norm", (x, weight, bias), (), (y,), {"eps": 1e-6}), tensors, 3e-6)
