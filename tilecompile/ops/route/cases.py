"""Random test cases of route: spread scores, which any sigmoid orders alike, and many ties."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case, normal


def spread(generator: torch.Generator, logits: View, bias: View) -> dict[str, torch.Tensor]:
    """Random logits and bias, redrawn until no two choices of a token are within rounding of each other."""
    while True:
        tensors = {"logits": normal(generator, logits), "bias": normal(generator, bias, 0.1)}
        keys = torch.sigmoid(tensors["logits"].double()) + tensors["bias"]
        if float(keys.sort(-1).values.diff(dim=-1).min()) > 1e-6:
            return tensors


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Numbers of experts below, at and beyond whole vectors; logits as a window of wider rows."""
    for tokens, experts, topk, normalize in ((1, 256, 8, True), (3, 48, 6, True), (2, 37, 5, False), (1, 5, 5, True)):
        bias = View.of("bias", (experts,), "f32")
        ids, weights = View.of("ids", (tokens, topk), "i32"), View.of("weights", (tokens, topk), "f32")
        attrs = {"topk": topk, "normalize": normalize, "scale": 2.5}

        logits = View.of("logits", (tokens, experts), "f32")
        yield Case(
            OpNode("spread", "route", (logits, bias), (), (ids, weights), attrs), spread(generator, logits, bias)
        )

        window = View("logits", (tokens, experts), (experts + 3, 1), 3, "f32")
        few = torch.randint(-3, 4, (tokens, experts + 3), generator=generator).float()
        groups = 2.0 * torch.randint(-1, 2, (experts,), generator=generator)
        yield Case(OpNode("ties", "route", (window, bias), (), (ids, weights), attrs), {"logits": few, "bias": groups})
