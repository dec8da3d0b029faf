"""The elementwise functions that expressions (`ir/expr.py`) are made of, and the value of an expression in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tilecompile.ir.expr import Expr


@dataclass(frozen=True)
class Elementwise:
    """One elementwise function: name here and in `ops/kit/cpu/simd.h`, number of arguments, meaning in torch."""

    name: str
    arity: int
    torch: Callable[..., torch.Tensor]


ELEMENTWISE = {
    e.name: e
    for e in (
        Elementwise("add", 2, torch.add),
        Elementwise("sub", 2, torch.sub),
        Elementwise("mul", 2, torch.mul),
        Elementwise("div", 2, torch.div),
        Elementwise("maximum", 2, torch.maximum),
        Elementwise("minimum", 2, torch.minimum),
        Elementwise("neg", 1, torch.neg),
        Elementwise("relu", 1, torch.relu),
        Elementwise("sigmoid", 1, torch.sigmoid),
        Elementwise("silu", 1, F.silu),
        Elementwise("gelu_tanh", 1, lambda x: F.gelu(x, approximate="tanh")),
        Elementwise("tanh", 1, torch.tanh),
        Elementwise("exp", 1, torch.exp),
        Elementwise("sqrt", 1, torch.sqrt),
    )
}


def evaluate(expr: Expr, acc: list[torch.Tensor], inputs: list[torch.Tensor]) -> torch.Tensor:
    """The value of the expression, in torch."""
    if expr[0] == "acc":
        return acc[expr[1]]
    if expr[0] == "in":
        return inputs[expr[1]]
    if expr[0] == "const":
        return torch.tensor(float(expr[1]))
    return ELEMENTWISE[expr[0]].torch(*(evaluate(arg, acc, inputs) for arg in expr[1:]))
