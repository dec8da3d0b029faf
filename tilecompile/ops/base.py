"""What every tile op is made of: the types that an op's folder fills in, and the registry that the passes read.

An op's folder holds `__init__.py` (definition, eager reference, shape rule, tiling rule, C++ call), `cpu.h` (the body)
and `cases.py` (random test cases). Ops know nothing of the compiler's stages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tilecompile.cuda.body import Body
from tilecompile.runtime import format as fmt

if TYPE_CHECKING:
    import torch

PANEL = fmt.PANEL
"""Rows of a weight panel: the lanes of a `v16`."""

Bound = int | npt.NDArray[np.int64]


@dataclass(frozen=True)
class View:
    """How an operator sees a tensor: a strided window (in elements) of the tensor's own memory.

    Dimension 0 is always dimension 0 of the tensor (tokens, or rows of a cache); views never cross it.
    """

    tensor: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    dtype: str

    @staticmethod
    def of(tensor: str, shape: Sequence[int], dtype: str) -> View:
        """The view of a whole contiguous tensor."""
        strides, step = [], 1
        for size in reversed(shape):
            strides.append(step)
            step *= size
        return View(tensor, tuple(shape), tuple(reversed(strides)), 0, dtype)

    def narrow(self, axis: int, begin: int, end: int) -> View:
        """The window begin:end of one dimension."""
        shape = (*self.shape[:axis], end - begin, *self.shape[axis + 1 :])
        return View(self.tensor, shape, self.strides, self.offset + begin * self.strides[axis], self.dtype)

    def select(self, axis: int, index: int) -> View:
        """The view without a dimension, at one index of it."""
        offset = self.offset + index * self.strides[axis]
        keep = [i for i in range(len(self.shape)) if i != axis]
        shape, strides = (tuple(values[i] for i in keep) for values in (self.shape, self.strides))
        return View(self.tensor, shape, strides, offset, self.dtype)

    def swapped(self, first: int, second: int) -> View:
        """The view with two dimensions in each other's place."""
        order = list(range(len(self.shape)))
        order[first], order[second] = second, first
        shape, strides = (tuple(values[i] for i in order) for values in (self.shape, self.strides))
        return View(self.tensor, shape, strides, self.offset, self.dtype)

    def of_tensor(self, tensor: str) -> View:
        """The same window of another tensor of the same shape."""
        return View(tensor, self.shape, self.strides, self.offset, self.dtype)

    @property
    def columns(self) -> tuple[int, int]:
        """The columns (begin, end) of the tensor's [rows, cols] matrix that hold the window."""
        inner = zip(self.shape[1:], self.strides[1:], strict=True)
        return self.offset, self.offset + sum((n - 1) * s for n, s in inner) + 1

    @property
    def runs(self) -> list[tuple[int, int]]:
        """The same without the gaps between the elements of dimension 1."""
        if len(self.shape) < 3 or self.narrow(1, 0, 1).columns[1] - self.offset >= self.strides[1]:
            return [self.columns]
        return [self.narrow(1, i, i + 1).columns for i in range(self.shape[1])]

    def __str__(self) -> str:
        text = f"{self.tensor}[{','.join(map(str, self.shape))}]{self.dtype}"
        contiguous = View.of(self.tensor, self.shape, self.dtype)
        return text if contiguous == self else f"{text} strides {self.strides} offset {self.offset}"


@dataclass(frozen=True)
class OpNode:
    """One operator of the graph: tile op, operands, attributes, where in the model it comes from, and its device."""

    name: str
    op: str
    inputs: tuple[View, ...]
    weights: tuple[View, ...]
    outputs: tuple[View, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    layer: int | None = None
    device: int = 0

    @property
    def operands(self) -> tuple[View, ...]:
        """Operands in the order in which bodies number them: inputs, then outputs."""
        return self.inputs + self.outputs


@dataclass(frozen=True)
class Access:
    """The boxes of one operand that the tasks of a grid read or write.

    `box` gives (begin, end) for each dimension of the operand's view; each bound is a number or an array with one
    entry a task. A data-dependent address is declared as all that it can reach.
    """

    operand: int
    box: tuple[tuple[Bound, Bound], ...]


def whole(node: OpNode, operand: int) -> Access:
    """The access of every task to all of an operand."""
    return Access(operand, tuple((0, size) for size in node.operands[operand].shape))


@dataclass(frozen=True)
class WeightTile:
    """Rows of one or two weight matrices that one task streams, as they lie in the pool.

    The matrices are taken as [matrices, rows, cols] (a 2-d weight is one matrix). The tile holds rows
    `row_begin:row_end` of matrices `begin:end`, `cols` columns of them from `col_begin` on; rows of each matrix are
    padded to whole panels; with two tensors their panels alternate. A `gathered` tile stands for one such tile per
    matrix (an expert), chosen at run time. `layout` says how the panels lie (format.LAYOUTS).
    """

    tensors: tuple[str, ...]
    begin: int
    end: int
    row_begin: int
    row_end: int
    cols: int
    gathered: bool = False
    col_begin: int = 0
    layout: str = "rows"

    @property
    def panels(self) -> int:
        """Panels of 16 rows in the tile (of one expert, if gathered)."""
        matrices = 1 if self.gathered else self.end - self.begin
        return matrices * -(-(self.row_end - self.row_begin) // PANEL) * len(self.tensors)

    def bytes(self, dtype: str) -> int:
        """Bytes of the tile (of one expert, if gathered) with weights of a type."""
        return fmt.tile_bytes(self.panels, self.cols, self.col_begin, dtype, self.layout)


@dataclass(frozen=True)
class Tiling:
    """An operator split into tasks: coordinates, accesses and weight tiles, one entry a task.

    `coords` is int32 [tasks, 4] and becomes `Instruction.tile`. `weights[i]` are the tiles that task i streams, in
    order; a gathered tile carries the expert slot that addresses it. `cost` is float64 [tasks], in bytes moved.
    `scratch` is the private memory in bytes that the body needs.

    The proof of a schedule believes the accesses, so a task reads nothing outside its reads and writes nothing outside
    its writes, not even for a moment, and no two tasks write the same element. Neither do bodies read past the end of a
    tensor, a tile or the scratch memory (rounded up to 64 bytes): no padding is promised. Prefetches are free.
    """

    coords: npt.NDArray[np.int32]
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]
    weights: tuple[tuple[tuple[WeightTile, int], ...], ...]
    cost: npt.NDArray[np.float64]
    scratch: int = 0


@dataclass(frozen=True)
class Shard:
    """How an op is divided over devices: which dimension of its operands is cut; operands that aren't named are whole.

    `inputs` maps input numbers to dimensions; `extra` is the dimension of the epilogue's further inputs, which begin
    after the op's `own` inputs (and a folded norm's weight). Without `output` the shards' results are to be summed.
    """

    inputs: dict[int, int] = field(default_factory=dict)
    weights: int | None = None
    output: int | None = None
    extra: int | None = None
    own: int = 1


@dataclass(frozen=True)
class TileOp:
    """One tile op.

    `weight_args` and `mutated` name arguments of the torch op: streamed weights, and caches that it writes.
    `tile(node, parts)` splits a node into about `parts` tasks of equal cost.
    `cpu(node)` is the C++ statement that calls the body in `cpu.h` with the node's shapes as constants.
    `gpu(node)` states the body of the CUDA targets; an op without it can't be compiled for them.
    `reference(node, inputs, weights)` evaluates the node as the passes left it, fused parts included; inputs are torch
    tensors, written in place where the op mutates them.
    `shards` names the ways in which it can be divided over devices. An op that `stores_to_peers` takes any number of
    outputs, which all get the same values (`direct.py`).
    """

    name: str
    tile: Callable[[OpNode, int], Tiling]
    cpu: Callable[[OpNode], str]
    reference: Callable[..., Any]
    weight_args: tuple[str, ...] = ()
    mutated: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    shards: dict[str, Shard] = field(default_factory=dict)
    stores_to_peers: bool = False
    gpu: Callable[[OpNode], Body] | None = None

    def body(self) -> str:
        """The text of the op's C++ body, after the headers that it builds on."""
        return (Path(__file__).parent / self.name / "cpu.h").read_text()


REGISTRY: dict[str, TileOp] = {}


def reference_values(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """The eager reference's values, one for each output of the node; mutated inputs change in place."""
    op = REGISTRY[node.op]
    result = op.reference(node, inputs, weights)
    found = list(result) if isinstance(result, tuple) else [] if result is None else [result]
    return found * len(node.outputs) if op.stores_to_peers else found


def register(op: TileOp) -> TileOp:
    """Adds an op to the registry; the name must be new."""
    if op.name in REGISTRY:
        raise ValueError(f"tile op {op.name} is registered twice")
    REGISTRY[op.name] = op
    return op


def split(size: int, parts: int, unit: int = PANEL) -> npt.NDArray[np.int64]:
    """Bounds of at most `parts` nearly equal pieces of `size`, each a multiple of `unit` but the last."""
    units = -(-size // unit)
    parts = max(1, min(parts, units))
    bounds = np.minimum((np.arange(parts + 1) * units // parts) * unit, size)
    return bounds.astype(np.int64)


GRAIN = 4096
"""Elements below which an elementwise op is not worth splitting: a task costs about as much as moving these."""


def pieces(parts: int, elements: int) -> int:
    """How many tasks to make of an op that only reads and writes `elements`: at most `parts`, none far below GRAIN."""
    return max(1, min(parts, -(-elements // GRAIN)))


CPP_TYPES = {"f32": "float", "bf16": "bf16", "i32": "int32_t", "fp8": "fp8"}
"""Element types in C++. No CPU body takes fp8: engines without a kernel only tell their task kinds apart by it."""
