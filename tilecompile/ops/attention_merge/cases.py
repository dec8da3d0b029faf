"""Random test cases of attention_merge."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case, normal


def cases(generator: torch.Generator) -> Iterator[Case]:
    """One part and many, parts without positions, some heads of wider tensors, scores that differ widely."""
    for tokens, count, heads, latent, more, spread in (
        (1, 8, 12, 256, 0, 1.0),
        (3, 3, 5, 53, 2, 3.0),
        (3, 2, 1, 16, 3, 100.0),
        (2, 1, 4, 30, 0, 1.0),
        (1, 20, 3, 70, 1, 10.0),
    ):
        shape = (tokens, count, heads + more, latent + 2)
        wide = View.of("parts", shape, "f32")
        parts = View("parts", (*shape[:2], heads, shape[3]), wide.strides, more * shape[3], "f32")
        y = View.of("y", (tokens, heads, latent), "f32")
        data = normal(generator, wide)
        data[..., latent] *= spread
        data[..., latent + 1] = data[..., latent + 1].abs() + 1
        data[..., :latent] *= data[..., latent + 1 :]
        empty = torch.rand(shape[:3], generator=generator) < 0.4
        empty[:, count // 2] = False
        data[empty] = 0.0
        yield Case(OpNode("merge", "attention_merge", (parts,), (), (y,)), {"parts": data})
