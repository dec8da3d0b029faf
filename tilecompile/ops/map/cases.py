"""Random test cases of map."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.expr import Expr
from tilecompile.ir.node import OpNode, View
from tilecompile.ops.elementwise import ELEMENTWISE
from tilecompile.ops.testing import Case, normal


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Every function; odd sizes, T = 1 and 3, windows of wider tensors, more dimensions, sizes that are split."""
    a, b = ("in", 0), ("in", 1)

    def case(expr: Expr, views: list[View], tolerance: float = 1e-5) -> Case:
        tensors = {}
        for v in views:
            reach = v.offset + sum((n - 1) * s for n, s in zip(v.shape, v.strides, strict=True)) + 1
            tensors[v.tensor] = normal(generator, View.of(v.tensor, (reach,), v.dtype))
        y = View.of("y", views[0].shape, "f32")
        return Case(OpNode("map", "map", tuple(views), (), (y,), {"expr": expr}), tensors, tolerance)

    for e in ELEMENTWISE.values():
        arg = ("mul", a, a) if e.name == "sqrt" else a
        args = (arg, ("add", ("mul", b, b), ("const", 0.5)))[: e.arity]
        yield case((e.name, *args), [View.of("x", (3, 37), "f32"), View.of("z", (3, 37), "f32")])
    gated = ("sub", ("mul", ("silu", a), b), ("mul", ("const", 0.1), a))
    for tokens, shape, width in (
        (1, (5003,), 5003),
        (3, (1700,), 1733),
        (3, (7, 13), 13),
        (3, (7, 13), 19),
        (2, (45, 53), 53),
        (1, (90, 53), 64),
        (2, (3, 5, 11), 11),
        (2, (5, 3, 300), 303),
        (3, (), 1),
    ):
        rows = [width]
        for size in reversed(shape[:-1]):
            rows.append(rows[-1] * size)
        strides = (*reversed(rows), 1) if shape else (1,)
        x = View("x", (tokens, *shape), strides, width - shape[-1] if shape else 0, "f32")
        yield case(gated, [x, View.of("z", x.shape, "f32")])
        yield case(gated, [View.of("z", x.shape, "f32"), x])
