"""Random test cases of expert_combine: plain, and with residual and shared expert in the epilogue."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case, normal
from tilecompile.runtime.format import MAX_TOKENS


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Shapes with odd sizes, T = 1 and more, both weight types, inactive slots, slots that only some tokens use.

    x is NaN wherever a token doesn't use a slot: the result must not depend on it.
    """
    for tokens, rows, cols, dtype, experts in (
        (1, 48, 64, "f32", [1, 4]),
        (3, 37, 53, "bf16", [0, 2, 3, -1, -1]),
        (1, 100, 203, "bf16", [0, 1, 4]),
        (MAX_TOKENS, 16, 9, "f32", [2, 3, -1]),
    ):
        slots = len(experts)
        x = View("x", (tokens, slots, cols), ((slots + 1) * cols, cols, 1), cols, "f32")
        expert, weight = View.of("expert", (1, slots), "i32"), View.of("weight", (tokens, slots), "f32")
        w, y = View.of("w", (5, rows, cols), dtype), View.of("y", (tokens, rows), "f32")
        residual, shared = (View.of(name, (tokens, rows), "f32") for name in ("residual", "shared"))
        tensors = {v.tensor: normal(generator, v) for v in (w, residual, shared)}
        tensors["expert"] = torch.tensor([experts], dtype=torch.int32)
        used = torch.rand((tokens, slots), generator=generator) < 0.5 if tokens > 1 else torch.ones(1, slots) > 0
        used[0, 0], used[1:, 1] = True, False
        used &= tensors["expert"] >= 0
        tensors["weight"] = normal(generator, weight) * used
        tensors["x"] = normal(generator, View.of("x", (tokens, slots + 1, cols), "f32"))
        tensors["x"][:, 1:][~used] = float("nan")
        yield Case(OpNode("plain", "expert_combine", (x, expert, weight), (w,), (y,)), tensors)
        peer = View.of("peer", y.shape, "f32")
        yield Case(OpNode("stored to a peer too", "expert_combine", (x, expert, weight), (w,), (y, peer)), tensors)
        attrs = {"epilogue": ("add", ("in", 0), ("add", ("in", 1), ("acc", 0)))}
        inputs = (x, expert, weight, residual, shared)
        yield Case(OpNode("fused", "expert_combine", inputs, (w,), (y,), attrs), tensors)
