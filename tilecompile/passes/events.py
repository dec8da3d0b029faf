"""events: who waits for whom, derived from overlapping regions.

For every pair of grids that touch the same tensor, one of them writing, the overlap of their boxes says which consumer
task must come after which producer task: reads after writes, and overwrites after reads and writes. The producers of a
pair of grids are divided into classes that the same consumers wait for; each class is an element of an event tensor, so
that each producer task notifies one element and each consumer task waits for the elements that make up its producers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tilecompile.ir.tasks import EventTensor, EventTensors, Region, TaskGrid, TaskGrids
from tilecompile.ops.base import op_of


def events(grids: TaskGrids) -> EventTensors:
    """The event tensors of a program. The sink also waits for every task that no other task waits for."""
    tensors: list[EventTensor] = []
    known: dict[tuple[int, int, bytes], int] = {}
    waits: list[list[list[tuple[int, int]]]] = []
    touched: dict[str, list[tuple[TaskGrid, Region, bool]]] = {}
    awaited: list[npt.NDArray[np.bool_]] = [np.zeros(g.tasks, np.bool_) for g in grids.grids]
    for grid in grids.grids:
        edges: dict[int, npt.NDArray[np.bool_]] = {}
        for region, writes in [(r, False) for r in grid.reads] + [(w, True) for w in grid.writes]:
            for other, earlier, wrote in touched.get(region.tensor, []):
                if writes or wrote:
                    _join(edges, other.index, region.overlaps(earlier))
        if op_of(grid.node).is_sink:
            for other in grids.grids[: grid.index]:
                loose = ~awaited[other.index]
                if loose.any():
                    _join(edges, other.index, np.broadcast_to(loose, (grid.tasks, other.tasks)))
        tasks: list[list[tuple[int, int]]] = [[] for _ in range(grid.tasks)]
        for producer, matrix in sorted(edges.items()):
            if not matrix.any():
                continue
            awaited[producer] = np.logical_or(awaited[producer], matrix.any(axis=0))
            signatures, notify = classes(matrix)
            key = (producer, grid.device, notify.tobytes())
            if key not in known:
                known[key] = len(tensors)
                counts = np.bincount(notify[notify >= 0], minlength=len(signatures))
                tensors.append(EventTensor(len(tensors), producer, notify, counts, grid.device))
            for element, signature in enumerate(signatures):
                for task in np.flatnonzero(signature):
                    tasks[task].append((known[key], element))
        waits.append(tasks)
        for region, writes in [(r, False) for r in grid.reads] + [(w, True) for w in grid.writes]:
            touched.setdefault(region.tensor, []).append((grid, region, writes))
    return EventTensors(grids, tensors, waits)


def classes(matrix: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Divides producers (columns) by the set of consumers (rows) that need them.

    Returns the consumers of each class, bool [classes, consumers], and each producer's class, -1 where none needs it.
    Classes are numbered by their first producer.
    """
    columns, inverse = np.unique(matrix.T, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    needed: npt.NDArray[np.bool_] = np.asarray(columns.any(axis=1))
    order: dict[int, int] = {}
    notify = np.full(len(inverse), -1, np.int64)
    for producer, column in enumerate(inverse.tolist()):
        if needed[column]:
            notify[producer] = order.setdefault(column, len(order))
    return columns[list(order)], notify


def _join(edges: dict[int, npt.NDArray[np.bool_]], producer: int, matrix: npt.NDArray[np.bool_]) -> None:
    edges[producer] = np.logical_or(edges[producer], matrix) if producer in edges else matrix
