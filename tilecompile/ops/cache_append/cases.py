"""Random test cases of cache_append."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ops.base import OpNode, View
from tilecompile.ops.testing import Case, normal


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Both cache types, all columns and some, odd sizes, the first and the last rows, and rows past the end."""
    for tokens, rows, cols, width, column, position in (
        (1, 10, 64, 64, 0, 0),
        (3, 9, 83, 37, 41, 6),
        (3, 20, 50, 50, 0, 7),
        (1, 8, 96, 32, 64, 7),
        (8, 11, 40, 17, 3, 6),
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
            yield Case(OpNode("append", "cache_append", (cache, x, at), (), (), {"column": column}), tensors, 0)
