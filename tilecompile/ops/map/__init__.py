"""map: an elementwise expression that no other operator took into its epilogue. Made by the tracer from ATen."""

from __future__ import annotations

from math import prod

import numpy as np
import torch

from tilecompile.ir.expr import to_cpp
from tilecompile.ir.node import OpNode, View
from tilecompile.ir.tiling import Access, Bound, Tiling, pieces, split
from tilecompile.ops.base import CPP_TYPES, TileOp, register
from tilecompile.ops.elementwise import evaluate
from tilecompile.ops.map.gpu import gpu
from tilecompile.runtime.format import DTYPE_BYTES


def inner(node: OpNode) -> int:
    """The first dimension (1 to ndim) of the innermost ones that are contiguous in every operand: one vector."""
    views, shape = node.operands, node.outputs[0].shape
    first, run = len(shape), 1
    while first > 1 and all(shape[first - 1] == 1 or v.strides[first - 1] == run for v in views):
        first -= 1
        run *= shape[first]
    return first


def tile(node: OpNode, parts: int) -> Tiling:
    """Ranges of dimension 1, for all tokens; the coordinates are (first, one past the last)."""
    shape = node.outputs[0].shape
    size = shape[1] if len(shape) > 1 else 1
    bounds = split(size, pieces(parts, prod(shape) * (len(node.inputs) + 1) // 2), unit=16 if len(shape) == 2 else 1)
    lo, hi = bounds[:-1], bounds[1:]
    coords = np.zeros((len(lo), 4), np.int32)
    coords[:, 0], coords[:, 1] = lo, hi
    ranges: list[tuple[Bound, Bound]] = [(0, shape[0]), (lo, hi), *((0, n) for n in shape[2:])]
    box = tuple(ranges[: len(shape)])
    bytes_each = sum(DTYPE_BYTES[v.dtype] for v in node.operands) * prod(shape) // size
    return Tiling(
        coords=coords,
        reads=tuple(Access(i, box) for i in range(len(node.inputs))),
        writes=(Access(len(node.inputs), box),),
        weights=((),) * len(lo),
        cost=np.asarray((hi - lo) * bytes_each, np.float64),
    )


def cpu(node: OpNode) -> str:
    """Loops over tokens and the outer dimensions, and within them over blocks of 16 elements of the contiguous ones."""
    shape, first = node.outputs[0].shape, inner(node)

    def offset(view: View) -> str:
        return " + ".join([*(f"i{d} * {view.strides[d]}" for d in range(first)), "k"])

    head = [f"for (int i0 = 0, tokens = c.tokens({len(node.inputs)}); i0 < tokens; ++i0)"]
    if first > 1:
        head.append("for (int i1 = c.tile(0); i1 < c.tile(1); ++i1)")
    head += [f"for (int i{d} = 0; i{d} < {shape[d]}; ++i{d})" for d in range(2, first)]
    if first == 1 < len(shape):
        run = prod(shape[2:])
        begin, end = f"c.tile(0) * {run}", f"c.tile(1) * {run}"
    else:
        begin, end = "0", str(prod(shape[first:]))
    lines = [f"{' '.join(head)} each_block({begin}, {end}, [&](int k, int n) {{"]
    for i, view in enumerate(node.inputs):
        lines.append(f"  const v16 in{i} = load_n(c.arg<const {CPP_TYPES[view.dtype]}>({i}) + {offset(view)}, n);")
    y = node.outputs[0]
    out = f"c.arg<{CPP_TYPES[y.dtype]}>({len(node.inputs)}) + {offset(y)}"
    lines += [f"  store_n({out}, {to_cpp(node.attrs['expr'])}, n);", "});"]
    return "\n  ".join(lines)


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """The eager value of a node."""
    return evaluate(node.attrs["expr"], [], inputs)


MAP = register(TileOp("map", tile, cpu, reference, gpu=gpu, is_elementwise=True, divides_activations=True))
