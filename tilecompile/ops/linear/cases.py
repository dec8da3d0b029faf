"""Random test cases of linear: plain, and with everything folded in."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case, normal
from tilecompile.runtime.format import MAX_TOKENS


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Shapes with odd sizes, T = 1, 3 and the most, both weight types."""
    for tokens, rows, cols, dtype in (
        (1, 48, 64, "f32"),
        (3, 37, 53, "bf16"),
        (1, 200, 203, "bf16"),
        (MAX_TOKENS, 16, 9, "f32"),
    ):
        x, y = View.of("x", (tokens, cols), "f32"), View.of("y", (tokens, rows), "f32")
        w, u = (View.of(name, (rows, cols), dtype) for name in "wu")
        norm, residual = View.of("norm", (cols,), "f32"), View.of("residual", (tokens, rows), "f32")
        tensors = {v.tensor: normal(generator, v) for v in (x, w, u, norm, residual)}
        yield Case(OpNode("plain", "linear", (x,), (w,), (y,)), tensors)
        attrs = {"norm": 1e-5, "epilogue": ("add", ("in", 0), ("mul", ("silu", ("acc", 0)), ("acc", 1)))}
        peer = View.of("peer", (tokens, rows), "f32")
        yield Case(OpNode("stored to a peer too", "linear", (x,), (w,), (y, peer)), tensors)
        yield Case(OpNode("fused", "linear", (x, norm, residual), (w, u), (y,), attrs), tensors)
