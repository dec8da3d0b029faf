"""Evaluates an operator graph in torch, node by node, with the ops' references: what a rewrite must not change."""

from __future__ import annotations

import torch
from torch import Tensor

from tilecompile.ir.graph import OpGraph
from tilecompile.ir.node import View
from tilecompile.ops.base import op_of, reference_values
from tilecompile.ops.context import Context
from tilecompile.ops.dtypes import torch_dtype


def window(tensors: dict[str, Tensor], view: View) -> Tensor:
    """What a view shows of its tensor."""
    return torch.as_strided(tensors[view.tensor], view.shape, view.strides, view.offset)


def random_tensors(graph: OpGraph, seed: int) -> dict[str, Tensor]:
    """Values for all that the graph doesn't write: parameters, caches, ids and the position (2)."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, t in graph.tensors.items():
        if t.role == "activation":
            continue
        if t.dtype == "i32":
            value = torch.full(t.shape, 2, dtype=torch.int32)
            tensors[name] = value + torch.arange(t.rows, dtype=torch.int32) if name == "ids" else value
        else:
            scale = t.cols**-0.5 if len(t.shape) > 1 else 1.0
            tensors[name] = (torch.randn(t.shape, generator=generator) * scale).to(torch_dtype(t.dtype))
    return tensors


def evaluate(graph: OpGraph, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors after one step: those given (copied first), with caches written to, and every activation."""
    values = {name: t.clone() for name, t in tensors.items()}
    for node in graph.nodes:
        if op_of(node).is_sink:
            continue
        inputs = [window(values, v) for v in node.inputs]
        weights = [window(values, v) for v in node.weights]
        for view, value in zip(node.outputs, reference_values(node, inputs, weights), strict=True):
            assert value.shape == view.shape, f"{node.name}: {tuple(value.shape)}, stated {view.shape}"
            assert value.dtype == torch_dtype(view.dtype), f"{node.name}: {value.dtype}, stated {view.dtype}"
            values[view.tensor] = value.contiguous()
    return values


def on_devices(placed: OpGraph, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors after one step of all devices; `tensors` are the undivided ones. What no operator writes is NaN."""
    values = {}
    for name, t in placed.tensors.items():
        if t.role == "activation":
            values[name] = torch.full(t.shape, -1 if t.dtype == "i32" else torch.nan, dtype=torch_dtype(t.dtype))
        elif t.shard:
            context = Context(*t.shard)
            values[name] = tensors[t.undivided][[context.position(row) for row in range(t.rows)]]
        else:
            values[name] = tensors[t.undivided].clone()
    for node in placed.nodes:
        if not op_of(node).is_sink:
            parts = ([window(values, v) for v in views] for views in (node.inputs, node.weights))
            for view, value in zip(node.outputs, reference_values(node, *parts), strict=True):
                window(values, view).copy_(value)
    return values
