"""Random test cases of cache_append."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case, normal


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Both cache types, all columns and some, odd sizes, first and last rows, rows past the end, shards."""
    for tokens, rows, cols, width, column, position, context in (
        (1, 10, 64, 64, 0, 0, None),
        (3, 9, 83, 37, 41, 6, None),
        (3, 20, 50, 50, 0, 7, None),
        (1, 8, 96, 32, 64, 7, None),
        (8, 11, 40, 17, 3, 6, None),
        (1, 6, 33, 20, 13, 13, (1, 2, 4)),
        (1, 6, 33, 20, 13, 15, (0, 2, 4)),
        (8, 7, 21, 21, 0, 5, (2, 3, 2)),
        (3, 5, 40, 17, 0, 13, (1, 3, 3)),
    ):
        for dtype in ("f32", "bf16"):
            cache = View.of("cache", (rows, cols), dtype)
            x = View("x", (tokens, width), (width + 5, 1), 2, "f32")
            at = View.of("position", (1,), "i32")
            wide = normal(generator, View.of("x", (tokens, width + 5), "f32"))
            wide[-1, 3] = 3.4e38  # rounds to infinity in bf16
            tensors = {
                "cache": normal(generator, cache),
                "x": wide,
                "position": torch.tensor([position], dtype=torch.int32),
            }
            attrs = {"column": column, "context": context}
            yield Case(OpNode("append", "cache_append", (cache, x, at), (), (), attrs), tensors, 0)
