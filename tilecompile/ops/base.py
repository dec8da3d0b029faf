"""The definition of a tile op: the types that an op's folder fills in, and the registry that the passes read.

An op's folder holds `__init__.py` (definition, eager reference, shape rule, tiling rule, C++ call, traits), `cpu.h`
(the body) and `cases.py` (random test cases). Ops know nothing of the compiler's stages: what a pass, a placement or
the simulator must know of an op is a trait of its `TileOp`, and where a trait is needed that an op doesn't state,
`TraitError` says so.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from tilecompile.ir.node import OpNode, View
from tilecompile.ir.placement import Split
from tilecompile.ir.tiling import Tiling
from tilecompile.ops.kit.body import Body

if TYPE_CHECKING:
    import torch

    from tilecompile.ops.context import Context

Indices = npt.NDArray[np.int64]
Counts = npt.NDArray[np.number[Any]] | float


class TraitError(AssertionError):
    """An op doesn't state a trait that its use makes necessary; names the op, the trait and why."""


@dataclass(frozen=True)
class SplitAxis:
    """How an op is divided over devices: which dimension of its operands is cut; operands that aren't named are whole.

    `inputs` maps input numbers to dimensions, `extra` is the dimension of the epilogue's further inputs. Without
    `output` the shards' results are partial sums. An operand's dimension may be shorter than the first one's, as that
    of grouped key-value heads is: it is cut in proportion. `unit(node)` is the number of elements that stay together.
    """

    inputs: dict[int, int] = field(default_factory=dict)
    weights: int | None = None
    output: int | None = None
    extra: int | None = None
    unit: Callable[[OpNode], int] = lambda node: 1

    def extent(self, node: OpNode) -> int:
        """Elements of the axis: what a part's bounds count."""
        if self.weights is not None:
            return node.weights[0].shape[self.weights]
        operand, dimension = next(iter(self.inputs.items()))
        return node.inputs[operand].shape[dimension]


@dataclass(frozen=True)
class RowsRead:
    """How many rows of a cache or a table a step reads: one for each position of the context.

    At most `most` (None: as many as the context has), none while the context is at most `above`; the first `first`
    count for another task. Without `of_context` always `most`.
    """

    most: int | None = None
    above: int = 0
    first: int = 0
    of_context: bool = True

    def at(self, context: int) -> int:
        """Rows read at a context of `context` positions, the step's own included."""
        if not self.of_context:
            return self.most or 0
        if context <= self.above:
            return 0
        rows = context - self.first
        return max(0, rows if self.most is None else min(rows, self.most))


NO_ROWS = RowsRead(0, of_context=False)
"""Of a cache that a step only writes to."""


@dataclass(frozen=True)
class TaskWork:
    """What tasks do at a context: an array [tasks] each, or one number for all of them.

    `elements` counts activations that are read or written, `products` multiplications with values of caches, `caches`
    bytes of caches, `distinct` those of them that no earlier task of the operator has read.
    """

    elements: Counts
    products: Counts = 0.0
    caches: Counts = 0.0
    distinct: Counts = 0.0


class Distribution(Protocol):
    """The distributed graph that a `context_rule` adds operators to (`passes/place/copies.py`)."""

    def make(self, name: str, shape: tuple[int, ...], dtype: str) -> View:
        """A new activation, of which devices get copies."""

    def make_shard(self, name: str, device: int, context: Context, shape: tuple[int, ...]) -> View:
        """A device's shard of a tensor that is divided by blocks of the context; made if it doesn't exist."""

    def shard(self, name: str, device: int, context: Context) -> View:
        """A device's shard of a tensor. ValueError if it has none of these blocks."""

    def add(
        self,
        node: OpNode,
        device: int,
        inputs: Sequence[View],
        weights: Sequence[View],
        outputs: Sequence[View],
        private: bool = False,
    ) -> None:
        """Adds a device's operator, after the exchanges that it needs; `private` results are never pushed."""


@dataclass(frozen=True)
class WorkerParts:
    """An operator in parts for several workers of a device, and the operator that merges them.

    `made` is the tensor of the parts' results, as the merging operator reads it.
    """

    parts: tuple[OpNode, ...]
    merge: OpNode
    made: View


@dataclass(frozen=True)
class TileOp:
    """One tile op.

    `weight_args` and `mutated` name arguments of the torch op: streamed weights, and caches that it writes.
    `tile(node, parts)` splits a node into about `parts` tasks of equal cost.
    `cpu(node)` is the C++ statement that calls the body in `cpu.h` with the node's shapes as constants, but for the
    number of tokens: `c.tokens(i)` is how many the step has for operand i.
    `gpu(node)` states the body of the CUDA targets; an op without it can't be compiled for them.
    `reference(node, inputs, weights)` evaluates the node as the passes left it, fused parts included; inputs are torch
    tensors, written in place where the op mutates them.

    Traits, which the passes ask for:

    - `own_inputs`: inputs of the op itself; after them come a folded norm's weight and the epilogue's further inputs.
    - `takes_epilogue`, `takes_norm`: the fuse pass may fold an elementwise epilogue, or the norm of input 0, into it.
      `is_elementwise`: it is one expression (`attrs["expr"]`); `is_norm`: it is a norm that others can fold.
    - `split_axes`: the ways in which it can be divided over devices. An op that `stores_to_peers` takes any number of
      outputs, which all get the same values (`passes/place/direct.py`).
    - `context_rule(distribution, node, split)`: adds the node's operators divided by blocks of the context.
    - `split_over_workers(node, workers, name)`: the node in parts, where a device has more workers than tasks for it;
      None where that doesn't pay. `name(ending)` names the new operators and tensors.
    - `reads(node)`: rows of caches and tables that a step reads, by input. Every cache must be in it, with NO_ROWS if
      it is only written to; a table that isn't in it is read whole.
    - `work(node, tiles, context)`: what tasks with tile coordinates int64 [tasks, 4] do at a context for one token. An
      op that reads a cache must state it; for others the declared regions say it.
    - `slots(node)`: the i32 operand that chooses the matrix of each slot, of an op that streams one of several stacked
      matrices a slot; its weights are conditional.
    - `is_sink`: the kernel's loop implements it, and all else of a step comes before it. `samples`: it makes the token
      that the sink takes. `chooses`: "positions" or "experts", what its result selects for later operators.
    - `partly_written`: it leaves a part of what it declares unwritten; `unwritten(node, inputs)` is that part of its
      first output, as a mask that broadcasts, where the reference gives numbers there. `divides_activations`: its
      tasks touch fewer activations where there are more of them.
    - `keeps_state`: what it mutates is of role `state`, which step programs hand to each other, and no cache.
    """

    name: str
    tile: Callable[[OpNode, int], Tiling]
    cpu: Callable[[OpNode], str]
    reference: Callable[..., Any]
    weight_args: tuple[str, ...] = ()
    mutated: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    gpu: Callable[[OpNode], Body] | None = None
    own_inputs: int = 1
    takes_epilogue: bool = False
    takes_norm: bool = False
    is_elementwise: bool = False
    is_norm: bool = False
    split_axes: Mapping[str, SplitAxis] = field(default_factory=dict)
    stores_to_peers: bool = False
    context_rule: Callable[[Distribution, OpNode, Split], None] | None = None
    split_over_workers: Callable[[OpNode, int, Callable[[str], str]], WorkerParts | None] | None = None
    reads: Callable[[OpNode], Mapping[int, RowsRead]] = lambda node: {}
    work: Callable[[OpNode, Indices, int], TaskWork] | None = None
    slots: Callable[[OpNode], View] | None = None
    is_sink: bool = False
    samples: bool = False
    chooses: str | None = None
    partly_written: bool = False
    unwritten: Callable[[OpNode, Sequence[torch.Tensor]], torch.Tensor] | None = None
    divides_activations: bool = False
    keeps_state: bool = False

    @property
    def folder(self) -> Path:
        """The op's folder, in which its bodies are."""
        return Path(inspect.getfile(self.tile)).parent

    def body(self) -> str:
        """The text of the op's C++ body, after the headers that it builds on."""
        return (self.folder / "cpu.h").read_text()


REGISTRY: dict[str, TileOp] = {}


def op_of(node: OpNode) -> TileOp:
    """The tile op of a node."""
    return REGISTRY[node.op]


def reference_values(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """The eager reference's values, one for each output of the node; mutated inputs change in place."""
    op = REGISTRY[node.op]
    result = op.reference(node, inputs, weights)
    found = list(result) if isinstance(result, tuple) else [] if result is None else [result]
    return found * len(node.outputs) if op.stores_to_peers else found


def epilogue_begin(node: OpNode) -> int:
    """Operand number of the epilogue's first further input; past the last input of an op that takes no epilogue."""
    op = REGISTRY[node.op]
    if not op.takes_epilogue:
        return len(node.inputs)
    return op.own_inputs + (node.attrs.get("norm") is not None)


def cache_reads(node: OpNode, caches: Sequence[int]) -> Mapping[int, RowsRead]:
    """`reads` of a node whose inputs `caches` are caches. TraitError if it leaves one of them out."""
    op = REGISTRY[node.op]
    found = op.reads(node)
    for i in caches:
        if i not in found:
            raise TraitError(f"tile op {op.name} reads a cache as input {i} and doesn't state how many rows (`reads`)")
    return found


def reads_context(node: OpNode, caches: Sequence[int]) -> bool:
    """Whether a node reads positions of the context from one of its inputs `caches`. TraitError as `cache_reads`."""
    found = cache_reads(node, caches)
    return any(found[i].of_context for i in caches)


def check_traits(node: OpNode, caches: Sequence[int], tiling: Tiling) -> None:
    """TraitError if the node's op leaves out a trait without which bytes or times of the node would be wrong."""
    op, reads = REGISTRY[node.op], reads_context(node, caches)
    if reads and op.work is None:
        raise TraitError(f"tile op {op.name} reads a cache and doesn't state what its tasks do there (`work`)")
    if op.slots is None and any(slot >= 0 for task in tiling.weights for _, slot in task):
        raise TraitError(f"tile op {op.name} streams weights by slot and doesn't state its slots (`slots`)")


def register(op: TileOp) -> TileOp:
    """Adds an op to the registry; the name must be new."""
    if op.name in REGISTRY:
        raise ValueError(f"tile op {op.name} is registered twice")
    REGISTRY[op.name] = op
    return op


CPP_TYPES = {"f32": "float", "bf16": "bf16", "i32": "int32_t"}
"""Types of the elements of buffers in C++."""
