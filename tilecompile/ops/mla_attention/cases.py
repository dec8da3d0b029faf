"""Random test cases of mla_attention."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case, normal


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Full and partly used selections, odd sizes and head counts, both cache types, windows of wider queries.

    The last ones are parts of the softmax, with all, some or none of the entries selected.
    """
    for tokens, heads, latent, rope, size, topk, position, dtype, part in (
        (1, 12, 256, 32, 900, 128, 700, "f32", None),
        (3, 7, 64, 16, 300, 50, 290, "bf16", None),
        (3, 5, 53, 19, 100, 64, 10, "f32", None),
        (1, 3, 90, 8, 40, 21, 0, "bf16", None),
        (3, 13, 176, 24, 64, 64, 61, "f32", None),
        (3, 7, 64, 16, 100, 50, 290, "f32", (50, 1, 23)),
        (1, 12, 90, 8, 300, 64, 700, "bf16", (40,)),
        (3, 5, 53, 19, 40, 21, 10, "f32", (0, 0, 0)),
    ):
        q_latent = View.of("q_latent", (tokens, heads, latent), "f32")
        wide = View.of("q", (tokens, heads, rope + 7), "f32")
        q_rope = View("q", (tokens, heads, rope), wide.strides, 7, "f32")
        cache, where = View.of("cache", (size, latent + rope), dtype), View.of("position", (1,), "i32")
        selection = View.of("selection", (tokens, topk), "i32")
        y = View.of("y", (tokens, heads, latent if part is None else latent + 2), "f32")
        tensors = {v.tensor: normal(generator, v) for v in (q_latent, wide, cache)}
        tensors["position"] = torch.tensor([position], dtype=torch.int32)
        tensors["selection"] = torch.full(selection.shape, -1, dtype=torch.int32)
        for t in range(tokens):
            rows, most = (position + t + 1, topk) if part is None else (size, part[t])
            chosen = torch.randperm(rows, generator=generator)[:most].sort().values
            tensors["selection"][t, : len(chosen)] = chosen
        inputs = (q_latent, q_rope, cache, selection, where)
        attrs = {"scale": (latent + rope) ** -0.5, "context": None if part is None else (1, 2, 16)}
        yield Case(OpNode("attend", "mla_attention", inputs, (), (y,), attrs), tensors)
