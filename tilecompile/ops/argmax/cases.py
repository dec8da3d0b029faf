"""Random test cases of argmax."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case, normal


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Odd sizes, a window of wider rows, ties within and across chunks, infinities, some NaN, and only NaN."""
    inf, nan = torch.inf, torch.nan
    for tokens, vocab, width in ((1, 64, 64), (3, 37, 41), (3, 5003, 5003), (1, 1, 1), (7, 2500, 2503)):
        whole = View.of("x", (tokens, width), "f32")
        view = View("x", (tokens, vocab), (width, 1), width - vocab, "f32")
        node = OpNode("argmax", "argmax", (view,), (), (View.of("y", (tokens,), "i32"),))
        logits = normal(generator, whole)
        yield Case(node, {"x": logits}, 0)
        coarse = (logits * 2).round()  # many ties, and both zeros
        coarse[coarse.abs() < 2] *= -0.0
        yield Case(node, {"x": coarse.minimum(torch.zeros(())) if tokens > 1 else coarse}, 0)
        spoilt = torch.where(torch.rand(logits.shape, generator=generator) < 0.1, nan, logits)
        yield Case(node, {"x": spoilt}, 0)
        for value, rare in ((nan, -inf), (-inf, nan), (nan, nan), (1.0, inf)):
            rows = torch.full((tokens, width), value)
            rows[:, -1] = rare
            yield Case(node, {"x": rows}, 0)
