"""Random test cases of topk_candidates."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.context import Context
from tilecompile.ops.testing import Case, normal


def cases(generator: torch.Generator) -> Iterator[Case]:
    """More and fewer rows than topk, none, ties of both zeros, contexts below topk, at it and above."""
    for kind, tokens, size, position, topk, room, context in (
        ("normal", 1, 1024, 3900, 64, 64, Context(1, 4, 64)),
        ("normal", 3, 500, 995, 37, 40, Context(1, 2, 16)),
        ("ties", 3, 330, 650, 100, 100, Context(0, 2, 64)),
        ("ties", 3, 30, 98, 100, 30, Context(3, 4, 8)),
        ("equal", 3, 100, 200, 19, 19, Context(2, 3, 4)),
        ("normal", 3, 40, 61, 64, 64, Context(0, 2, 64)),
        ("normal", 2, 40, 65, 32, 35, Context(3, 4, 64)),
        ("normal", 2, 90, 100, 64, 64, Context(0, 2, 64)),
    ):
        scores, where = View.of("scores", (tokens, size), "f32"), View.of("position", (1,), "i32")
        wide = View.of("keys", (tokens, room, 2), "i32")
        x = normal(generator, scores)
        if kind == "ties":
            x = torch.where(x > 0, 0.0, x.round())  # rounding leaves some -0
        elif kind == "equal":
            x = torch.full_like(x, -1.5)
        for t in range(tokens):
            seen = position + t + 1
            x[t, context.rows(seen) if seen > topk else 0 :] = torch.nan  # must not be read
        tensors = {"scores": x, "position": torch.tensor([position], dtype=torch.int32)}
        attrs = {"topk": topk, "context": (context.index, context.count, context.block)}
        yield Case(OpNode(kind, "topk_candidates", (scores, where), (), (wide,), attrs), tensors, tolerance=0)
