"""What every tile op is made of: the types that an op's folder fills in, and the registry that the passes read.

An op's folder holds `__init__.py` (definition, eager reference, shape rule, tiling rule, C++ call), `cpu.h` (the body)
and `cases.py` (random test cases). Ops know nothing of the compiler's stages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import Tiling
from tilecompile.ops.kit.body import Body

if TYPE_CHECKING:
    import torch


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


CPP_TYPES = {"f32": "float", "bf16": "bf16", "i32": "int32_t", "fp8": "fp8"}
"""Element types in C++. No CPU body takes fp8: engines without a kernel only tell their task kinds apart by it."""
