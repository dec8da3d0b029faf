"""Random test cases of index_score."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.context import Context
from tilecompile.ops.testing import Case, normal


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Contexts that end within a block, at its end, and at the last of the cache; tokens below topk; shards of them."""
    for tokens, heads, width, size, position, topk, dtype, context in (
        (1, 8, 64, 1024, 700, 64, "f32", None),
        (3, 8, 64, 600, 597, 64, "bf16", None),
        (3, 5, 19, 515, 255, 16, "f32", None),
        (3, 9, 40, 300, 62, 64, "bf16", None),
        (2, 32, 128, 300, 63, 64, "f32", None),
        (3, 5, 19, 335, 900, 64, "f32", Context(1, 3, 64)),
        (3, 4, 32, 90, 62, 64, "bf16", Context(2, 4, 16)),
        (3, 2, 16, 40, 32, 20, "f32", Context(3, 4, 8)),
    ):
        wide = View.of("q", (tokens, heads, width + 3), "f32")
        query = View("q", (tokens, heads, width), wide.strides, 3, "f32")
        weight, where = View.of("w", (tokens, heads), "f32"), View.of("position", (1,), "i32")
        keys = View.of("cache", (size, width + 5), dtype)
        cache = View("cache", (size, width), keys.strides, 5, dtype)
        scores = View.of("scores", (tokens, size), "f32")
        tensors = {v.tensor: normal(generator, v) for v in (wide, weight, keys)}
        tensors["position"] = torch.tensor([position], dtype=torch.int32)
        seen = [position + t + 1 for t in range(tokens)]
        rows = [(context.rows(n) if context else n) if n > topk else 0 for n in seen]
        written = torch.arange(size) < torch.tensor(rows)[:, None]
        attrs = {"topk": topk, "context": dataclasses.astuple(context) if context else None}
        node = OpNode("index", "index_score", (query, weight, cache, where), (), (scores,), attrs)
        yield Case(node, tensors, written=written)
