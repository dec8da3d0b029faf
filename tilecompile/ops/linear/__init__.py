"""linear: a matrix-vector product per token, streamed from the weight tape.

The fuse pass may fold into it: the RMS norm of its input (`attrs["norm"]` = eps; the norm's weight becomes input 1), a
second weight of the same shape, and an elementwise epilogue over the products and further inputs
(`attrs["epilogue"]`), such as a residual or `mul(silu(acc0), acc1)`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from tilecompile.ir.expr import to_cpp
from tilecompile.ir.node import OpNode, View
from tilecompile.ir.tiling import Access, Bound, Tiling, WeightTile, split, whole
from tilecompile.ops.base import SplitAxis, TileOp, epilogue_begin, register
from tilecompile.ops.elementwise import evaluate
from tilecompile.ops.linear.gpu import gpu
from tilecompile.ops.rms_norm import rms_norm
from tilecompile.runtime.weight_formats import FORMATS


@torch.library.custom_op("tilecompile::linear", mutates_args=())
def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """y = x · weightᵀ. x: f32 [T, K], weight: [N, K]; returns f32 [T, N], accumulated in f32."""
    return x @ weight.to(x.dtype).T


@linear.register_fake
def _(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)


def epilogue_inputs(node: OpNode) -> list[int]:
    """Operand numbers of the epilogue's extra inputs."""
    return list(range(epilogue_begin(node), len(node.inputs)))


def output_writes(node: OpNode, box: tuple[tuple[Bound, Bound], ...]) -> tuple[Access, ...]:
    """Accesses to the same box of every output."""
    return tuple(Access(len(node.inputs) + i, box) for i in range(len(node.outputs)))


def norm_reads(node: OpNode) -> tuple[Access, ...]:
    """Accesses to x and, if a norm is folded in, to its weight."""
    return (whole(node, 0),) if node.attrs.get("norm") is None else (whole(node, 0), whole(node, 1))


def norm_scratch(node: OpNode) -> int:
    """Bytes of scratch memory for the folded norm."""
    x = node.inputs[0]
    return 0 if node.attrs.get("norm") is None else 4 * x.shape[0] * x.shape[1]


def cpu_columns(node: OpNode) -> str:
    """The columns of a node's weights as `Columns`."""
    weight = node.weights[0]
    begin = weight.offset % weight.strides[-2]
    return f"Columns{{{weight.shape[-1]}, {FORMATS[weight.dtype].phase(begin)}}}"


def cpu_input(node: OpNode) -> tuple[str, int]:
    """C++ expression of the activations, normed where a norm is folded in, and their token stride in floats.

    It refers to the number of tokens as `tokens`.
    """
    x = node.inputs[0]
    cols = x.shape[1]
    if node.attrs.get("norm") is None:
        return "c.arg<const float>(0)", x.strides[0]
    norm = f"{x.strides[0]}, c.arg<float>(1), {node.attrs['norm']!r}f"
    return f"normed<{cols}>(c, tokens, c.arg<float>(0), {norm})", cols


def cpu_epilogue(node: OpNode, first: int, offset: Callable[[View], str]) -> str:
    """C++ lambda body that loads the extra inputs, evaluates the epilogue and stores 16 rows to every output.

    `offset` gives the C++ expression of the offset within an operand; extra inputs are those from number `first` on.
    """
    lines = [f"const v16 acc{i} = a[{i}];" for i in range(max(1, len(node.weights)))]
    for i, view in enumerate(node.inputs[first:]):
        lines.append(f"const v16 in{i} = load_n(c.arg<const float>({first + i}) + {offset(view)}, n);")
    lines.append(f"const v16 y = {to_cpp(node.attrs.get('epilogue', ('acc', 0)))};")
    for i, view in enumerate(node.outputs, len(node.inputs)):
        lines.append(f"store_n(c.arg<float>({i}) + {offset(view)}, y, n);")
    return "\n".join("    " + line for line in lines)


def tile(node: OpNode, parts: int) -> Tiling:
    """Row tiles; the coordinates are (first row, one past the last)."""
    x, weight = node.inputs[0], node.weights[0]
    rows, cols = weight.shape
    bounds = split(rows, parts)
    lo, hi = bounds[:-1], bounds[1:]
    coords = np.zeros((len(lo), 4), np.int32)
    coords[:, 0], coords[:, 1] = lo, hi
    extra = tuple(Access(i, ((0, x.shape[0]), (lo, hi))) for i in epilogue_inputs(node))
    names = tuple(w.tensor for w in node.weights)
    stored = FORMATS[weight.dtype]
    return Tiling(
        coords=coords,
        reads=norm_reads(node) + extra,
        writes=output_writes(node, ((0, x.shape[0]), (lo, hi))),
        weights=tuple(((WeightTile(names, 0, 1, int(a), int(b), cols), -1),) for a, b in zip(lo, hi, strict=True)),
        cost=np.asarray(stored.number_bytes(hi - lo, cols) * len(names), np.float64),
        scratch=norm_scratch(node),
    )


def cpu(node: OpNode) -> str:
    """The call of `linear_rows` with the node's shapes, prologue and epilogue."""
    weight = FORMATS[node.weights[0].dtype]
    source, stride = cpu_input(node)
    epilogue = cpu_epilogue(node, epilogue_begin(node), lambda v: f"t * {v.strides[0]} + row")
    return (
        "const int tokens = c.tokens(0);\n"
        f"  const Tokens x = Tokens::first(tokens, {source}, {stride});\n"
        f"  linear_rows<{len(node.weights)}>(c.weights<{weight.cpp}>(0), x, {cpu_columns(node)}, c.tile(0), c.tile(1), "
        f"[&](const v16* a, int t, int row, int n) {{\n{epilogue}\n  }});"
    )


def normed_input(node: OpNode, inputs: list[torch.Tensor]) -> torch.Tensor:
    """The activations, normed where a norm is folded in, in torch."""
    x: torch.Tensor = inputs[0]
    return x if node.attrs.get("norm") is None else rms_norm(x, inputs[1], node.attrs["norm"])


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """The eager value of a node with all that was folded into it."""
    x = normed_input(node, inputs)
    extra = [inputs[i] for i in epilogue_inputs(node)]
    return evaluate(node.attrs.get("epilogue", ("acc", 0)), [linear(x, w) for w in weights], extra)


SPLIT_AXES = {"rows": SplitAxis(weights=0, output=1, extra=1), "cols": SplitAxis({0: 1}, weights=1)}
"""By rows of the weight, or by columns: then the results are partial sums."""

register(
    TileOp(
        "linear",
        tile,
        cpu,
        reference,
        weight_args=("weight",),
        headers=("rms_norm",),
        gpu=gpu,
        takes_epilogue=True,
        takes_norm=True,
        split_axes=SPLIT_AXES,
        stores_to_peers=True,
    )
)
