"""Cases of the ops whose GPU bodies are written by hand: in other types, of several tokens, and at GLM-5's shapes."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Sequence

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case, normal

OPS = ("linear", "head_linear", "expert_linear", "expert_combine")


def as_type(case: Case, dtype: str, name: str) -> Case:
    """The case with weights of another type, of which its tensors are what is packed."""
    weights = tuple(dataclasses.replace(w, dtype=dtype) for w in case.node.weights)
    return dataclasses.replace(case, node=dataclasses.replace(case.node, weights=weights, name=name))


def with_tokens(case: Case, tokens: int, generator: torch.Generator) -> Case:
    """A case of an op whose operands' first dimension is the tokens, but that of the experts' ids."""
    views = []
    tensors = dict(case.tensors)
    for v in case.node.operands:
        if v.dtype == "i32" or len(v.shape) == 1:
            views.append(v)
            continue
        views.append(dataclasses.replace(v, shape=(tokens, *v.shape[1:])))
        if v.tensor in tensors:
            shape = (tokens, *tensors[v.tensor].shape[1:])
            tensors[v.tensor] = normal(generator, View.of(v.tensor, shape, v.dtype))
    written = (
        None if case.written is None else case.written.any(0, keepdim=True).expand(tokens, *case.written.shape[1:])
    )
    count = len(case.node.inputs)
    node = dataclasses.replace(case.node, inputs=tuple(views[:count]), outputs=tuple(views[count:]))
    return dataclasses.replace(case, node=node, tensors=tensors, written=written)


def linear(name: str, tokens: int, rows: int, cols: int, dtype: str, norm: bool = True, two: bool = False) -> Case:
    """A product with a residual, or with two weights their gated activation."""
    generator = torch.Generator().manual_seed(rows + cols + tokens)
    x, y = View.of("x", (tokens, cols), "f32"), View.of("y", (tokens, rows), "f32")
    weights = tuple(View.of(n, (rows, cols), dtype) for n in "wu"[: 1 + two])
    residual, scale = View.of("residual", (tokens, rows), "f32"), View.of("norm", (cols,), "f32")
    tensors = {v.tensor: normal(generator, v) for v in (x, residual, scale)}
    for w in weights:
        tensors[w.tensor] = torch.randn(w.shape, generator=generator) * cols**-0.5
    attrs: dict[str, object] = {"norm": 1e-5} if norm else {}
    attrs["epilogue"] = ("mul", ("silu", ("acc", 0)), ("acc", 1)) if two else ("add", ("in", 0), ("acc", 0))
    inputs = (x, *((scale,) if norm else ()), *(() if two else (residual,)))
    return Case(OpNode(name, "linear", inputs, weights, (y,), attrs), tensors)


def glm5(ops: Sequence[str] = OPS, most: int = 8) -> Iterator[tuple[Case, int]]:
    """Products of GLM-5 on 8 devices (tensor parallel) of some ops, with the number of workers; up to `most` tokens."""
    for dtype in ("fp8", "bf16"):
        for tokens in (1, 3, 8) if dtype == "fp8" else (1, 3):
            if tokens > most:
                continue
            name = f"{dtype}_{tokens}"
            if "linear" in ops:
                yield from _linears(name, tokens, dtype)
            if "head_linear" in ops:
                yield from _heads(name, tokens, dtype)
            if {"expert_linear", "expert_combine"} & set(ops):
                for case in _experts(name, tokens, dtype):
                    if case.node.op in ops:
                        yield case, 132


def _linears(name: str, tokens: int, dtype: str) -> Iterator[tuple[Case, int]]:
    yield linear(f"q_b_{name}", tokens, 2048, 2048, dtype), 132
    yield linear(f"o_{name}", tokens, 6144, 2048, dtype, norm=False), 132
    yield linear(f"down_{name}", tokens, 6144, 1536, dtype, norm=False), 148
    yield linear(f"shared_{name}", tokens, 256, 6144, dtype, two=True), 132
    yield linear(f"head_{name}", tokens, 19360, 6144, dtype), 132


def _heads(name: str, tokens: int, dtype: str) -> Iterator[tuple[Case, int]]:
    generator = torch.Generator().manual_seed(tokens)
    for label, rows, cols in (("uk", 512, 192), ("uv", 256, 512)):
        x, y = View.of("x", (tokens, 8, cols), "f32"), View.of("y", (tokens, 8, rows), "f32")
        w = View.of("w", (8, rows, cols), dtype)
        tensors = {"x": normal(generator, x), "w": torch.randn(w.shape, generator=generator)}
        yield Case(OpNode(f"{label}_{name}", "head_linear", (x,), (w,), (y,)), tensors), 132


def _experts(name: str, tokens: int, dtype: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(tokens)
    slots = 8
    expert = View.of("expert", (1, slots), "i32")
    ids = torch.tensor([[3, 0, -1, 1, 2, -1, -1, -1]], dtype=torch.int32)
    x, norm = View.of("x", (tokens, 6144), "f32"), View.of("norm", (6144,), "f32")
    weight = View.of("weight", (tokens, slots), "f32")
    hidden = View.of("hidden", (tokens, slots, 256), "f32")
    w, u = (View.of(n, (4, 256, 6144), dtype) for n in "wu")
    tensors = {v.tensor: normal(generator, v) for v in (x, norm, hidden)}
    tensors |= {v.tensor: torch.randn(v.shape, generator=generator) / 80 for v in (w, u)} | {"expert": ids}
    tensors["weight"] = torch.rand(weight.shape) + 0.1
    attrs = {"norm": 1e-5, "epilogue": ("mul", ("silu", ("acc", 0)), ("acc", 1))}
    node = OpNode(f"experts_{name}", "expert_linear", (x, norm, expert, weight), (w, u), (hidden,), attrs)
    written = (ids[0] >= 0)[None, :, None].expand(hidden.shape)
    yield Case(node, tensors, written=written)
    down = View.of("down", (4, 6144, 256), dtype)
    y = View.of("y", (tokens, 6144), "f32")
    tensors = tensors | {"down": torch.randn(down.shape, generator=generator)}
    node = OpNode(f"combine_{name}", "expert_combine", (hidden, expert, weight), (down,), (y,))
    yield Case(node, tensors)


def every_case(op: str, tokens: Sequence[int] = (1, 3, 8)) -> Iterator[tuple[Case, int]]:
    """The op's own random cases, with so many tokens, in bf16 and fp8; and in how many parts each is to be cut."""
    generator = torch.Generator().manual_seed(5)
    module = importlib.import_module(f"tilecompile.ops.{op}.cases")
    for i, case in enumerate(module.cases(generator)):
        dtype = ("bf16", "fp8")[i // 2 % 2 ^ i % 2]
        changed = with_tokens(as_type(case, dtype, f"{case.node.name}{i}_{dtype}"), tokens[i % len(tokens)], generator)
        yield changed, (1, 3)[i % 2]
    if op == "linear":
        yield linear("many_rows", 8, 120, 70, "fp8", two=True), 1
