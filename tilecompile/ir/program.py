"""A scheduled program: its tables, and where its tiles and buffers are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tilecompile.ir.graph import OpGraph, Tensor
from tilecompile.ir.node import OpNode
from tilecompile.ir.tasks import EventTensors, Ints
from tilecompile.ir.tiling import WeightTile
from tilecompile.runtime.format import ARENAS


@dataclass(frozen=True)
class PlacedTile:
    """Where a weight tile is stored in its device's pool; `bytes` is the size of one expert's part if gathered."""

    index: int
    tile: WeightTile
    device: int
    offset: int
    bytes: int

    @property
    def copies(self) -> int:
        """The number of tiles stored one after another: the experts of a gathered tile, else 1."""
        return self.tile.end - self.tile.begin if self.tile.gathered else 1


@dataclass(frozen=True)
class PlacedBuffer:
    """Where a tensor is stored: index in the buffer table, device, arena, offset and size in bytes."""

    index: int
    tensor: Tensor
    device: int
    arena: str
    offset: int
    bytes: int
    program: str | None


@dataclass
class Program:
    """A scheduled engine program: the tables of `runtime/format`, and what the packer and the listings need.

    `io` are the buffers of the loops' inputs by name, `outputs` those that a loop reads after a step, by program.
    """

    tables: dict[str, npt.NDArray[np.void]]
    programs: list[str]
    weights: list[str]
    operators: list[str]
    kinds: list[str]
    tiles: list[PlacedTile]
    buffers: list[PlacedBuffer]
    arena_bytes: list[dict[str, int]]
    pool_bytes: list[int]
    scratch_bytes: int
    io: dict[str, int] = field(default_factory=dict)
    outputs: list[dict[str, int]] = field(default_factory=list)

    def sizes(self) -> Ints:
        """Bytes of the arenas by device, pools as weight arenas: int64 [devices, len(ARENAS)]."""
        rows = zip(self.arena_bytes, self.pool_bytes, strict=True)
        return np.array([[{**arena, "weight": pool}[name] for name in ARENAS] for arena, pool in rows], np.int64)


@dataclass(frozen=True)
class EngineGraph:
    """The operators and tensors of each program by its name, the operators in the order of `Instruction.op`."""

    programs: dict[str, OpGraph]

    @property
    def nodes(self) -> list[OpNode]:
        """The operator of each value of `Instruction.op`."""
        return [node for graph in self.programs.values() for node in graph.nodes]

    @property
    def layers(self) -> dict[str, int | None]:
        """The layer of each tensor, by its name."""
        return {name: tensor.layer for graph in self.programs.values() for name, tensor in graph.tensors.items()}


def graph_of(plans: Sequence[EventTensors]) -> EngineGraph:
    """The operators that the schedule numbered, one for each task grid."""
    return EngineGraph({p.grids.graph.program: p.grids.graph for p in plans})
