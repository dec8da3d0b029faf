"""emit, for GPUs: kernel source from task kinds.

One readable file: the records' header, the hand-written parts, the bodies of the ops in use, one function a task kind
with its operator's name and shapes, and the resident loop. The schedule is not compiled in: the loop executes tables.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tilecompile.ir.node import OpNode
from tilecompile.ir.tasks import TaskGrids
from tilecompile.ops.base import REGISTRY, op_of
from tilecompile.ops.kit.body import Body, HandBody
from tilecompile.runtime.format import BlockShape, block_header, c_header
from tilecompile.targets.cuda.lower import Lowered, to_cuda
from tilecompile.targets.kind import Kind

Label = TypeVar("Label", bound=Hashable)

HERE = Path(__file__).parent
OPS = Path(__file__).parents[2] / "ops"

FRONT = ("sync.cuh", "ring.cuh", "call.cuh", "scalar.cuh", "reduce.cuh", "ranked.cuh", "sampling.h")
"""What bodies are written over."""

LOOP = ("commit_rules.h", "worker.cuh", "control.cuh", "loader.cuh", "loop.cuh", "fill.cuh")
"""The resident loop, and what fills memory for measurements."""


@dataclass(frozen=True)
class GpuKind(Kind):
    """A task kind with its body."""

    body: Body


def task_kinds(nodes: Mapping[Label, OpNode]) -> tuple[list[GpuKind], dict[Label, GpuKind]]:
    """One kind for each distinct body among the nodes, and the kind of each node by its label; sinks have none."""
    kinds: dict[tuple[str, Body], GpuKind] = {}
    of_node = {}
    for label, node in nodes.items():
        if op_of(node).is_sink:
            continue
        gpu = op_of(node).gpu
        assert gpu is not None, node.op
        body = gpu(node)
        key = (node.op, body)
        if key not in kinds:
            shapes = " ".join(str(v) for v in (*node.inputs, *node.weights)) + " -> " + " ".join(map(str, node.outputs))
            statement = body.statement if isinstance(body, HandBody) else ""
            kinds[key] = GpuKind(len(kinds) + 1, node.op, node.name, shapes, statement, body)
        of_node[label] = kinds[key]
    return list(kinds.values()), of_node


def largest_tiles(tiled: Iterable[TaskGrids], of_node: Mapping[tuple[str, str], Kind]) -> dict[int, int]:
    """Panels of the largest weight tile of each kind that has any, by the kind's index."""
    most: dict[int, int] = {}
    for grids in tiled:
        for grid in grids.grids:
            kind = of_node.get((grids.graph.program, grid.node.name))
            for tile in {tile for task in grid.tiling.weights for tile, _ in task} if kind else ():
                most[kind.index] = max(most.get(kind.index, 0), tile.panels)  # type: ignore[union-attr]
    return most


@dataclass(frozen=True)
class Bodies:
    """The functions of all kinds, and the shared memory that each takes beside the ring, in bytes by its index."""

    source: str
    scratch: dict[int, int]


def bodies(kinds: list[GpuKind], panels: Mapping[int, int], architecture: str) -> Bodies:
    """The bodies' text and one function a kind, in namespace tc, behind `FRONT`."""
    headers: dict[str, None] = {}
    functions, scratch = [], {}
    for kind in kinds:
        if isinstance(kind.body, HandBody):
            headers |= dict.fromkeys(kind.body.headers)
            scratch[kind.index] = kind.body.scratch + kind.body.panel_scratch * panels.get(kind.index, 0)
            functions.append(_function(kind, kind.body.statement))
        else:
            lowered: Lowered = to_cuda(kind.body, architecture)
            scratch[kind.index] = lowered.shared_bytes
            name = f"{kind.function}_tile"
            functions.append(f"{lowered.function(name)}{_function(kind, lowered.call(name, kind.body.args))}")
    texts = [(REGISTRY[op].folder / "gpu.cuh").read_text() for op in headers]
    source = "\n".join([*texts, "namespace tc {\n", *functions, "}  // namespace tc\n"])
    return Bodies(source, scratch)


def _function(kind: GpuKind, statement: str) -> str:
    return f"// {kind.comment}\nTC_DEVICE void {kind.function}(const Call& c) {{\n  {statement}\n}}\n"


def header(name: str) -> str:
    """The text of a hand-written header: of `ops/kit/cuda`, of this folder, or of all targets."""
    folders = (OPS / "kit" / "cuda", OPS / "kit", HERE, HERE.parent)
    return next(folder / name for folder in folders if (folder / name).exists()).read_text()


def front(shape: BlockShape, names: Iterable[str] = FRONT) -> str:
    """The text of the records, the block's shape, and what bodies are written over."""
    return "\n".join([c_header(), block_header(shape), *(header(name) for name in names)])


def once(text: str) -> str:
    """A source that is made of headers, without their guards."""
    return text.replace("#pragma once\n", "")
