"""Evaluates an operator graph in torch, node by node, with the ops' references: what a rewrite must not change."""

from __future__ import annotations

import torch
from torch import Tensor

from tilecompile.ir.graph import OpGraph
from tilecompile.ir.node import View
from tilecompile.ops.base import reference_values
from tilecompile.ops.dtypes import TORCH_DTYPES


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
            tensors[name] = (torch.randn(t.shape, generator=generator) * scale).to(TORCH_DTYPES[t.dtype])
    return tensors


def evaluate(graph: OpGraph, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors after one step: those given (copied first), with caches written to, and every activation."""
    values = {name: t.clone() for name, t in tensors.items()}
    for node in graph.nodes:
        if node.op == "commit":
            continue
        inputs = [window(values, v) for v in node.inputs]
        weights = [window(values, v) for v in node.weights]
        for view, value in zip(node.outputs, reference_values(node, inputs, weights), strict=True):
            assert value.shape == view.shape, f"{node.name}: {tuple(value.shape)}, stated {view.shape}"
            assert value.dtype == TORCH_DTYPES[view.dtype], f"{node.name}: {value.dtype}, stated {view.dtype}"
            values[view.tensor] = value.contiguous()
    return values
