"""Random test cases of topk_merge."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.context import Context
from tilecompile.ops.testing import Case, normal
from tilecompile.ops.topk_candidates import reference as candidates


def cases(generator: torch.Generator) -> Iterator[Case]:
    """The candidates of random scores, with ties and without; full lists and short ones; contexts below topk."""
    for kind, tokens, position, topk, shards, index, block in (
        ("normal", 1, 900, 64, 3, 1, 16),
        ("normal", 3, 120, 16, 4, 3, 8),
        ("ties", 3, 650, 100, 2, 0, 64),
        ("equal", 3, 200, 19, 3, 2, 4),
        ("equal", 3, 200, 19, 2, 0, 128),
        ("normal", 3, 30, 32, 4, 1, 8),
        ("normal", 2, 40, 64, 3, 0, 16),
        ("normal", 2, 20, 16, 5, 4, 16),
    ):
        size, where = position + tokens, View.of("position", (1,), "i32")
        scores = normal(generator, View.of("scores", (tokens, size), "f32"))
        if kind == "ties":
            scores = torch.where(scores > 0, 0.0, scores.round())
        elif kind == "equal":
            scores = torch.full_like(scores, -1.5)
        all_of = [Context(i, shards, block) for i in range(shards)]
        room = max(min(topk, c.rows(size)) for c in all_of)
        at = torch.tensor([position], dtype=torch.int32)
        lists = []
        for c in all_of:
            attrs = {"topk": topk, "context": (c.index, shards, block)}
            own = scores[:, [c.position(r) for r in range(c.rows(size))]]
            view = View.of("keys", (tokens, room, 2), "i32")
            lists.append(candidates(OpNode("", "topk_candidates", (), (), (view,), attrs), [own, at], []))
        keys = View.of("keys", (tokens, shards, room, 2), "i32")
        own_rows = max(1, min(topk, all_of[index].rows(size)))
        selection = View.of("selection", (tokens, own_rows), "i32")
        attrs = {"topk": topk, "context": (index, shards, block)}
        node = OpNode(kind, "topk_merge", (keys, where), (), (selection,), attrs)
        yield Case(node, {"keys": torch.stack(lists, 1), "position": at}, tolerance=0)
