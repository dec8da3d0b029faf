"""Random test cases of topk_select."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case, normal


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Distinct scores; few values with many ties, both zeros among them; all equal; outliers; short contexts."""
    for kind, tokens, size, position, topk in (
        ("normal", 1, 1024, 900, 64),
        ("normal", 3, 3000, 2996, 37),
        ("narrow", 1, 5000, 4999, 512),
        ("ties", 3, 700, 650, 100),
        ("equal", 3, 300, 200, 19),
        ("outliers", 1, 2000, 1999, 100),
        ("normal", 3, 100, 62, 64),
        ("normal", 3, 100, 20, 64),
        ("normal", 2, 50, 40, 64),
    ):
        scores, where = View.of("scores", (tokens, size), "f32"), View.of("position", (1,), "i32")
        selection = View.of("selection", (tokens, topk), "i32")
        x = normal(generator, scores)
        if kind == "ties":
            x = torch.where(x > 0, 0.0, x.round())  # rounding leaves some -0
        elif kind == "equal":
            x = torch.full_like(x, -1.5)
        elif kind == "narrow":
            x = 1e-4 * x + 100
        elif kind == "outliers":
            x[:, ::7] = -torch.inf
            x[:, ::501] = torch.inf
        for t in range(tokens):
            context = position + t + 1
            x[t, context if context > topk else 0 :] = torch.nan  # must not be read
        tensors = {"scores": x, "position": torch.tensor([position], dtype=torch.int32)}
        node = OpNode(kind, "topk_select", (scores, where), (), (selection,), {"topk": topk})
        yield Case(node, tensors, tolerance=0)
