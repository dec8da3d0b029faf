"""Ops' test cases as steps find them that carry fewer tokens than their operands have room for.

A body is built for all tokens of a case and run in a step of fewer. Rows of other tokens don't exist: behind the
last row of the step is an inaccessible page, so that a body that reads or writes any of them is caught.
"""

from __future__ import annotations

import ctypes
import dataclasses
import mmap

import numpy as np
import torch

from support.opharness import NO_ACCESS, as_view, call, pack_pool, poison
from tilecompile.ir.node import OpNode, View
from tilecompile.ops.base import REGISTRY
from tilecompile.ops.testing import Case
from tilecompile.runtime.format import ALIGN
from tilecompile.targets.kind import Kind

SHARED = ("cache", "table", "state")
"""Tensors whose rows aren't tokens, though there may be as many of them."""


def room(node: OpNode) -> int:
    """How many tokens a node's operands have room for."""
    read = next(v for v in node.inputs if v.tensor not in SHARED)
    return max(v.shape[0] for v in (read, *node.outputs[-1:]))


def by_token(node: OpNode, view: View) -> bool:
    """Whether an operand has a row for each token."""
    return view.shape[0] == room(node) > 1 and view.tensor not in SHARED


def first(case: Case, tokens: int) -> Case:
    """The case of its first tokens alone, with the same tensors: what the reference computes."""
    node = case.node

    def cut(views: tuple[View, ...]) -> tuple[View, ...]:
        return tuple(v.narrow(0, 0, tokens) if by_token(node, v) else v for v in views)

    attrs = node.attrs | ({"tokens": tokens} if "tokens" in node.attrs else {})
    node = dataclasses.replace(node, inputs=cut(node.inputs), outputs=cut(node.outputs), attrs=attrs)
    return dataclasses.replace(case, node=node, written=None if case.written is None else case.written[:tokens])


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def at_end(data: torch.Tensor) -> torch.Tensor:
    """A flat copy of some elements that ends at an inaccessible page."""
    size = data.numel() * data.element_size()
    inner = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, inner + mmap.PAGESIZE), np.uint8)
    if _libc.mprotect(memory.ctypes.data + inner, mmap.PAGESIZE, NO_ACCESS):
        raise OSError(ctypes.get_errno(), "mprotect")
    out = torch.from_numpy(memory[inner - size : inner]).view(data.dtype)
    return out.copy_(data.flatten())


class Step:
    """A case's tensors in a step of its first tokens, by name: flat, and each with an inaccessible page at its end."""

    def __init__(self, case: Case, tokens: int) -> None:
        self.cut = first(case, tokens)
        self.tensors: dict[str, torch.Tensor] = {}
        outputs = {v.tensor: poison(v) for v in case.node.outputs}
        for view in case.node.operands:
            if view.tensor in self.tensors:
                continue
            whole = outputs.get(view.tensor, case.tensors.get(view.tensor))
            assert whole is not None
            shown = [v for v in self.cut.node.operands if v.tensor == view.tensor]
            kept = max(_end(v) for v in shown) if by_token(case.node, view) else whole.numel()
            self.tensors[view.tensor] = at_end(whole.flatten()[:kept])

    def outputs(self) -> list[torch.Tensor]:
        """The outputs' rows of the step's tokens."""
        return [as_view(self.tensors[v.tensor], v).clone() for v in self.cut.node.outputs]

    def after(self, name: str) -> torch.Tensor:
        """A whole tensor that isn't divided by tokens, as it is now."""
        return self.tensors[name].view(self.cut.tensors[name].shape).clone()


def _end(view: View) -> int:
    return view.offset + sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True)) + 1


def run_partly(library: ctypes.CDLL, kind: Kind, case: Case, parts: int, tokens: int) -> list[torch.Tensor]:
    """Runs every task of a node in a step of its first tokens; returns the outputs' rows of these.

    Tensors that the op mutates change in `case.tensors`.
    """
    node, step = case.node, Step(case, tokens)
    tiling = REGISTRY[node.op].tile(node, parts)
    scratch = np.full(tiling.scratch + 2 * ALIGN, 255, np.uint8)
    base = scratch.ctypes.data + (-scratch.ctypes.data) % ALIGN
    addresses = {name: t.data_ptr() for name, t in step.tensors.items()}
    for task, coords in enumerate(tiling.coords):
        pool, tape = pack_pool(case, tiling.weights[task])
        fault, _ = call(library, kind, node, coords, addresses, tape, pool.ctypes.data, base, tokens)
        assert fault is None, f"{node.op} {node.name} task {task} in a step of {tokens} tokens: fault at {fault:#x}"
    for view in node.inputs:
        if not by_token(node, view):
            case.tensors[view.tensor].copy_(step.after(view.tensor))
    return step.outputs()
