"""Tasks of a program in grids, one an operator, and the event tensors that connect them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tilecompile.ir.graph import OpGraph
from tilecompile.ir.node import OpNode
from tilecompile.ir.placement import Placement
from tilecompile.ir.tiling import Tiling

Ints = npt.NDArray[np.int64]


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
    [elements]) is the number of tasks that notify each element. The counters are stored on `device`, where the tasks
    that wait for them run. After Event Tensor, arXiv 2604.13327.
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
