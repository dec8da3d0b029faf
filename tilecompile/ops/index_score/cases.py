"""Random test cases of index_score."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ops.base import OpNode, View
from tilecompile.ops.testing import Case, normal


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Contexts that end within a block, at its end, and at the last of the cache; some tokens below topk."""
    for tokens, heads, width, size, position, topk, dtype in (
        (1, 8, 64, 1024, 700, 64, "f32"),
        (3, 8, 64, 600, 597, 64, "bf16"),
        (3, 5, 19, 515, 255, 16, "f32"),
        (3, 9, 40, 300, 62, 64, "bf16"),
        (2, 32, 128, 300, 63, 64, "f32"),
    ):
        wide = View.of("q", (tokens, heads, width + 3), "f32")
        query = View("q", (tokens, heads, width), wide.strides, 3, "f32")
        weight, where = View.of("w", (tokens, heads), "f32"), View.of("position", (1,), "i32")
        rows = View.of("cache", (size, width + 5), dtype)
        cache = View("cache", (size, width), rows.strides, 5, dtype)
        scores = View.of("scores", (tokens, size), "f32")
        tensors = {v.tensor: normal(generator, v) for v in (wide, weight, rows)}
        tensors["position"] = torch.tensor([position], dtype=torch.int32)
        context = position + 1 + torch.arange(tokens)[:, None]
        written = (torch.arange(size) < context) & (context > topk)
        node = OpNode("index", "index_score", (query, weight, cache, where), (), (scores,), {"topk": topk})
        yield Case(node, tensors, written=written)
