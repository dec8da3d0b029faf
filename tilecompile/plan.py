"""Plan types: what the passes from placement to schedule hand to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tilecompile.graph import OpGraph, Tensor
from tilecompile.ops.base import PANEL, OpNode, Tiling, WeightTile
from tilecompile.runtime.format import ARENAS

Ints = npt.NDArray[np.int64]

CONTEXT = "context"
"""The axis of what is divided by blocks of positions, cyclically (`ops/context.py`, `by_context.py`)."""


@dataclass(frozen=True)
class Part:
    """Elements begin:end of the divided dimension, on one device."""

    device: int
    begin: int = 0
    end: int = 0


@dataclass(frozen=True)
class Split:
    """How an operator lies on devices: whole on each of them, or divided along one of its op's axes (`TileOp.shards`).

    Where the shards are partial sums, `adds` says which columns of the sum each device adds; where attention is divided
    by context, which heads each device puts together. `block` is the number of positions of a block of the context.
    """

    axis: str | None
    parts: tuple[Part, ...]
    adds: tuple[Part, ...] = ()
    block: int = 0

    @staticmethod
    def whole(devices: tuple[int, ...]) -> Split:
        """All of the operator on each of the devices."""
        return Split(None, tuple(Part(d) for d in devices))

    @staticmethod
    def shared(axis: str, units: int, devices: tuple[int, ...], unit: int = 1) -> Split:
        """Nearly equal shares of `units` units of `unit` elements; with too few units, devices at the end have none."""
        return Split(axis, _shares(units, devices, unit))

    @staticmethod
    def cyclic(devices: int, block: int) -> Split:
        """Blocks of the context, one device after the other."""
        return Split(CONTEXT, tuple(Part(d) for d in range(devices)), block=block)

    def one_shot(self, columns: int, devices: int) -> Split:
        """Every device adds all columns of the sum."""
        return Split(self.axis, self.parts, tuple(Part(d, 0, columns) for d in range(devices)))

    def two_step(self, columns: int, devices: int) -> Split:
        """Every device adds a share of the columns, which is then pushed to those that read it."""
        unit = PANEL if columns % PANEL == 0 and columns // PANEL >= devices else 1
        return Split(self.axis, self.parts, _shares(columns // unit, tuple(range(devices)), unit))

    @property
    def reduction(self) -> str | None:
        """The form of the sum: one_shot or two_step; None where nothing is summed."""
        if not self.adds or self.axis == CONTEXT:
            return None
        return "one_shot" if len({(p.begin, p.end) for p in self.adds}) == 1 else "two_step"

    def __str__(self) -> str:
        devices = ",".join(str(p.device) for p in self.parts)
        if self.axis is None:
            return f"devices {devices}, whole"
        if self.axis == CONTEXT:
            heads = " ".join(f"{p.begin}:{p.end}" for p in self.adds)
            return f"devices {devices}, context in blocks of {self.block}" + (f", then heads {heads}" if heads else "")
        cuts = " ".join(f"{p.begin}:{p.end}" for p in self.parts)
        text = f"devices {devices}, {self.axis} {cuts}"
        if self.reduction == "one_shot":
            return f"{text}, sum one_shot on {len(self.adds)}"
        if self.reduction == "two_step":
            return f"{text}, sum two_step on {len(self.adds)}: {' '.join(f'{p.begin}:{p.end}' for p in self.adds)}"
        return text


def _shares(units: int, devices: tuple[int, ...], unit: int) -> tuple[Part, ...]:
    """`units` units of `unit` elements over the devices."""
    count = len(devices)
    cuts = [(d * units // count if units >= count else min(d, units)) * unit for d in range(count + 1)]
    return tuple(Part(d, a, b) for d, (a, b) in zip(devices, pairwise(cuts), strict=True) if a < b)


@dataclass(frozen=True)
class Placement:
    """On which devices which parts of the operators of a program run, by operator name."""

    name: str
    devices: int
    splits: dict[str, Split]


@dataclass(frozen=True)
class PlacedGraph:
    """An operator graph in which each operator runs on one device, and the placement that it was made by."""

    graph: OpGraph
    placement: Placement

    def __str__(self) -> str:
        from tilecompile.placement_table import placement_table  # which is made of these types

        lines = [f"placement {self.placement.name}: {self.placement.devices} device(s)"]
        width = max((len(name) for name in self.placement.splits), default=0)
        lines += [f"  {name:<{width}}  {split}" for name, split in self.placement.splits.items()]
        more = f"{placement_table(self)}{self.graph}" if self.placement.devices > 1 else ""
        return "\n".join(lines) + "\n" + more


@dataclass(frozen=True)
class Region:
    """What the tasks of a grid touch of one tensor: boxes of its [rows, cols] matrix, one entry a task (int64 [n])."""

    tensor: str
    row_begin: Ints
    row_end: Ints
    col_begin: Ints
    col_end: Ints

    def overlaps(self, other: Region) -> npt.NDArray[np.bool_]:
        """bool [n, m]: whether box i of this region meets box j of the other; both are of the same tensor."""
        rows = (self.row_begin[:, None] < other.row_end) & (other.row_begin < self.row_end[:, None])
        cols = (self.col_begin[:, None] < other.col_end) & (other.col_begin < self.col_end[:, None])
        return rows & cols


@dataclass(frozen=True)
class TaskGrid:
    """One operator split into tasks, on one device, with the regions that they read and write."""

    index: int
    node: OpNode
    device: int
    tiling: Tiling
    reads: tuple[Region, ...]
    writes: tuple[Region, ...]

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return len(self.tiling.coords)


@dataclass
class TaskGrids:
    """All grids of a step program, in an order that respects dependencies; the last one is the sink."""

    graph: OpGraph
    placement: Placement
    grids: list[TaskGrid]

    def __str__(self) -> str:
        lines = [f"program {self.graph.program}: {sum(g.tasks for g in self.grids)} tasks in {len(self.grids)} grids"]
        for g in self.grids:
            lines.append(f"grid {g.index} {g.node.name} ({g.node.op}) on device {g.device}: {g.tasks} task(s)")
            for i in range(g.tasks):
                text = [f"  task {i} tile {tuple(map(int, g.tiling.coords[i]))}"]
                for mode, regions in (("reads", g.reads), ("writes", g.writes)):
                    boxes = [
                        f"{r.tensor}[{r.row_begin[i]}:{r.row_end[i]},{r.col_begin[i]}:{r.col_end[i]}]" for r in regions
                    ]
                    text.append(f"{mode} {' '.join(boxes)}")
                streams = [
                    f"{'+'.join(t.tensors)}[{t.row_begin}:{t.row_end}]{f' of slot {s}' if s >= 0 else ''}"
                    for t, s in g.tiling.weights[i]
                ]
                lines.append("  ".join(text) + (f"  streams {', '.join(streams)}" if streams else ""))
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class EventTensor:
    """An array of counters that the tasks of one producer grid notify.

    `notify` (int64 [producer tasks]) is the element that each task notifies, -1 for none; `wait_counts` (int64
    [elements]) is the number of tasks that notify each element. The counters lie on `device`, where the tasks that wait
    for them run. After Event Tensor, arXiv 2604.13327.
    """

    index: int
    producer: int
    notify: Ints
    wait_counts: Ints
    device: int = 0

    @property
    def map(self) -> str:
        """The notify map, written like einsum where it is regular."""
        if len(self.wait_counts) == 1 and (self.notify == 0).all():
            return "i->"
        if np.array_equal(self.notify, np.arange(len(self.notify))):
            return "i->i"
        return "i->" + "".join("-" if e < 0 else f"[{e}]" for e in self.notify)


@dataclass
class EventTensors:
    """A program's dependencies: event tensors, and the (tensor, element) pairs that each task of each grid awaits."""

    grids: TaskGrids
    tensors: list[EventTensor]
    waits: list[list[list[tuple[int, int]]]]

    def __str__(self) -> str:
        lines = [f"program {self.grids.graph.program}: {len(self.tensors)} event tensors"]
        names = {g.index: g.node.name for g in self.grids.grids}
        for t in self.tensors:
            counts = ",".join(map(str, t.wait_counts))
            lines.append(f"  E{t.index}[{len(t.wait_counts)}] notified by {names[t.producer]} {t.map} counts {counts}")
        lines.append("waits")
        for grid, tasks in zip(self.grids.grids, self.waits, strict=True):
            for i, task in enumerate(tasks):
                text = " ".join(f"E{t}[{e}]" for t, e in task)
                lines.append(f"  {grid.node.name} task {i}: {text or 'nothing'}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class PlacedTile:
    """Where a weight tile lies in its device's pool; `bytes` is one expert's part of a gathered tile."""

    index: int
    tile: WeightTile
    device: int
    offset: int
    bytes: int

    @property
    def copies(self) -> int:
        """Tiles that lie one after another: experts of a gathered tile, else 1."""
        return self.tile.end - self.tile.begin if self.tile.gathered else 1


@dataclass(frozen=True)
class PlacedBuffer:
    """Where a tensor lies: index in the buffer table, device, arena, offset and size in bytes."""

    index: int
    tensor: Tensor
    device: int
    arena: str
    offset: int
    bytes: int
    program: str | None


@dataclass
class Program:
    """A scheduled engine program: the tables of `runtime/format.py`, and what the packer and the listings need."""

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

    def sizes(self) -> Ints:
        """Bytes of the arenas by device, pools as weight arenas: int64 [devices, len(ARENAS)]."""
        rows = zip(self.arena_bytes, self.pool_bytes, strict=True)
        return np.array([[{**arena, "weight": pool}[name] for name in ARENAS] for arena, pool in rows], np.int64)
