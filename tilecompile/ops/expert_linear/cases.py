"""Random test cases of expert_linear: plain, and with everything folded in."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case, normal
from tilecompile.runtime.format import MAX_TOKENS


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Shapes with odd sizes, T = 1 and more, both weight types, inactive slots, slots that only some tokens use.

    x is a window of wider rows.
    """
    for tokens, rows, cols, dtype, experts in (
        (1, 48, 64, "f32", [1, 4]),
        (3, 37, 53, "bf16", [0, 2, 3, -1, -1]),
        (1, 100, 203, "bf16", [0, 1, 4]),
        (MAX_TOKENS, 16, 9, "f32", [3, -1]),
    ):
        slots = len(experts)
        x = View("x", (tokens, cols), (cols + 5, 1), 5, "f32")
        expert, weight = View.of("expert", (1, slots), "i32"), View.of("weight", (tokens, slots), "f32")
        w, u = (View.of(name, (5, rows, cols), dtype) for name in "wu")
        norm, extra = View.of("norm", (cols,), "f32"), View.of("extra", (tokens, slots, rows), "f32")
        y = View.of("y", (tokens, slots, rows), "f32")
        tensors = {v.tensor: normal(generator, v) for v in (w, u, norm, extra)}
        tensors["x"] = normal(generator, View.of("x", (tokens, cols + 5), "f32"))
        tensors["expert"] = torch.tensor([experts], dtype=torch.int32)
        used = torch.rand((tokens, slots), generator=generator) < 0.5
        used[0, 0], used[-1, 0], used[tokens // 2] = False, False, True  # each slot that holds an expert has a token
        used &= tensors["expert"] >= 0
        tensors["weight"] = normal(generator, weight) * used
        written = used[:, :, None].expand(y.shape)
        yield Case(OpNode("plain", "expert_linear", (x, expert, weight), (w,), (y,)), tensors, written=written)
        attrs = {"norm": 1e-5, "epilogue": ("add", ("in", 0), ("mul", ("silu", ("acc", 0)), ("acc", 1)))}
        node = OpNode("fused", "expert_linear", (x, norm, expert, weight, extra), (w, u), (y,), attrs)
        yield Case(node, tensors, written=written)
