"""Routed experts from the router's logits to the residual: a token's result doesn't depend on the others."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from support.opharness import RUNNABLE, build_bodies, run_body
from tilecompile.ir.node import OpNode, View
from tilecompile.ops import dispatch, expert_combine, expert_linear, route
from tilecompile.ops.testing import Case
from tilecompile.targets.cpu.build import Isa

HIDDEN, INNER, EXPERTS, TOPK = 45, 70, 9, 3


def nodes(tokens: int) -> list[OpNode]:
    """The routed part of a mixture of experts as the passes leave it, for `tokens` tokens."""
    slots = min(tokens * TOPK, EXPERTS)
    logits, bias = View.of("logits", (tokens, EXPERTS), "f32"), View.of("bias", (EXPERTS,), "f32")
    ids, weights = View.of("ids", (tokens, TOPK), "i32"), View.of("weights", (tokens, TOPK), "f32")
    expert, slot_weight = View.of("expert", (1, slots), "i32"), View.of("slot_weight", (tokens, slots), "f32")
    x, norm = View.of("x", (tokens, HIDDEN), "f32"), View.of("norm", (HIDDEN,), "f32")
    inner, y = View.of("inner", (tokens, slots, INNER), "f32"), View.of("y", (tokens, HIDDEN), "f32")
    gate, up = (View.of(name, (EXPERTS, INNER, HIDDEN), "bf16") for name in ("gate", "up"))
    down = View.of("down", (EXPERTS, HIDDEN, INNER), "bf16")
    swiglu = {"norm": 1e-5, "epilogue": ("mul", ("silu", ("acc", 0)), ("acc", 1))}
    residual = {"epilogue": ("add", ("in", 0), ("acc", 0))}
    steps = [
        OpNode("route", "route", (logits, bias), (), (ids, weights), {"topk": TOPK, "normalize": True, "scale": 2.5}),
        OpNode("dispatch", "dispatch", (ids, weights), (), (expert, slot_weight), {"slots": slots}),
        OpNode("swiglu", "expert_linear", (x, norm, expert, slot_weight), (gate, up), (inner,), swiglu),
        OpNode("combine", "expert_combine", (inner, expert, slot_weight, x), (down,), (y,), residual),
    ]
    return [dataclasses.replace(n, name=f"{n.name}_{tokens}") for n in steps]


@pytest.mark.parametrize("isa", RUNNABLE, ids=lambda isa: isa.name)
def test_bits_do_not_depend_on_other_tokens_or_tiles(isa: Isa) -> None:
    generator = torch.Generator().manual_seed(int(torch.randint(1 << 30, ())))
    library, kinds = build_bodies([n for tokens in (1, 2, 5) for n in nodes(tokens)], isa)

    def run(tensors: dict[str, torch.Tensor], parts: int) -> torch.Tensor:
        tensors = dict(tensors)
        for node in nodes(len(tensors["x"])):
            outputs = run_body(library, kinds[node.name], Case(node, tensors), parts)
            tensors |= {v.tensor: t for v, t in zip(node.outputs, outputs, strict=True)}
        return tensors["y"]

    constants = {
        "bias": torch.randn(EXPERTS, generator=generator) * 0.1,
        "norm": torch.rand(HIDDEN, generator=generator) + 0.5,
        "gate": torch.randn((EXPERTS, INNER, HIDDEN), generator=generator).bfloat16(),
        "up": torch.randn((EXPERTS, INNER, HIDDEN), generator=generator).bfloat16(),
        "down": torch.randn((EXPERTS, HIDDEN, INNER), generator=generator).bfloat16(),
    }
    x = torch.randn((5, HIDDEN), generator=generator)
    logits = torch.randn((5, EXPERTS), generator=generator)
    together = run({**constants, "x": x, "logits": logits}, 3)
    assert together.isfinite().all()
    for parts in (1, 2, 4):
        for rows in ([0], [1], [4], [2, 3], [4, 0]):
            got = run({**constants, "x": x[rows].clone(), "logits": logits[rows].clone()}, parts)
            assert torch.equal(got, together[rows])


def test_ops_of_experts_export_with_the_shapes_of_their_references() -> None:
    """The shape rules agree with the eager references, so that a model of these ops can be traced."""

    class Experts(torch.nn.Module):
        def forward(self, h: torch.Tensor, logits: torch.Tensor, bias: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            ids, weights = route(logits, bias, TOPK, True, 2.5)
            expert, slot_weight = dispatch(ids, weights, 2 * TOPK)
            inner = expert_linear(h, expert, slot_weight, w)
            y: torch.Tensor = expert_combine(inner, expert, slot_weight, w.transpose(1, 2))
            return y

    args = torch.randn(2, HIDDEN), torch.randn(2, EXPERTS), torch.zeros(EXPERTS), torch.randn(EXPERTS, INNER, HIDDEN)
    exported = torch.export.export(Experts(), args)
    torch.testing.assert_close(exported.module()(*args), Experts()(*args))
    for op, inputs in (
        (route, (*args[1:3], TOPK, True, 2.5)),
        (dispatch, (torch.tensor([[3, 1, 0], [1, 8, 0]], dtype=torch.int32), torch.rand(2, 3), 6)),
        (expert_linear, (args[0], torch.tensor([[1, 4, -1]], dtype=torch.int32), torch.rand(2, 3), args[3])),
        (
            expert_combine,
            (torch.randn(2, 2, HIDDEN), torch.tensor([[1, -1]], dtype=torch.int32), torch.rand(2, 2), args[3]),
        ),
    ):
        torch.library.opcheck(op, inputs)
