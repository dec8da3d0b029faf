"""What the tasks of a step do at a context: the weights, cache values and activations that each of them touches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from tilecompile.ir.node import OpNode
from tilecompile.ops.base import Indices, TaskWork, op_of
from tilecompile.runtime.folder.rows import entries, sums
from tilecompile.runtime.folder.tables import Tables
from tilecompile.runtime.format import ARENAS, DTYPE_BYTES, DTYPES, WRITE
from tilecompile.runtime.weight_formats import FORMATS

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """Of each task, in the order of the instructions that it was asked for; all arrays are [tasks].

    `runs` counts weight runs, `weights` bytes of weights by their type, `caches` bytes of caches and `distinct` those
    that no task before has read in this step, `products` multiplications with values of caches, `elements` activations
    that are read or written, `pushed` bytes that go to other devices. `filler` is the place of the task that fills the
    expert slots whose weights it streams, or -1.
    """

    runs: Numbers
    weights: dict[str, Numbers]
    caches: Numbers
    distinct: Numbers
    products: Numbers
    elements: Numbers
    pushed: Numbers
    filler: Indices

    @property
    def streamed(self) -> Numbers:
        """Bytes of weights."""
        return sum(self.weights.values(), np.zeros(len(self.runs)))

    @property
    def read(self) -> float:
        """Distinct bytes of weights and caches that all tasks together read."""
        return float(self.streamed.sum() + self.distinct.sum())


def work_of(tables: Tables, nodes: Sequence[OpNode], index: Indices, device: Indices, context: int) -> Work:
    """The work of instructions `index`, each on a device, in one step.

    `context` counts the positions that the step's token sees, its own included; `nodes` are the operators by
    `Instruction.op`.
    """
    rows = tables["instructions"][index]
    tape, tiles = tables["tape"], tables["tiles"]
    dtype = tables["weights"]["dtype"][tiles["tensor"][tape["tile"]]] if len(tape) else np.zeros(0, np.int64)
    streamed = tape["bytes"].astype(np.float64)
    weights = {
        name: sums(np.where(dtype == stored.code, streamed, 0.0), rows, "tape") for name, stored in FORMATS.items()
    }
    regions, buffers = tables["regions"], tables["buffers"]
    arena = buffers["arena"][regions["buffer"]]
    area = (regions["row_end"].astype(np.float64) - regions["row_begin"]) * (
        regions["col_end"].astype(np.float64) - regions["col_begin"]
    )
    counted = np.isin(arena, [ARENAS.index(name) for name in ("activation", "io")])
    elements = sums(np.where(counted, area, 0.0), rows, "region")
    at, owner = entries(rows, "region")
    away = np.zeros(len(regions), bool)
    away[at] = (buffers["device"][regions["buffer"][at]] != device[owner]) & (regions["mode"][at] == WRITE)
    size = np.array([DTYPE_BYTES[name] for name in DTYPES])[buffers["dtype"][regions["buffer"]]]
    work = Work(
        runs=rows["tape_count"].astype(np.float64),
        weights={name: found for name, found in weights.items() if found.any()},
        caches=np.zeros(len(index)),
        distinct=np.zeros(len(index)),
        products=np.zeros(len(index)),
        elements=elements,
        pushed=sums(np.where(away, area * size, 0.0), rows, "region"),
        filler=_fillers(tables, nodes, rows, index),
    )
    of_op = np.argsort(rows["op"], kind="stable")
    ops = rows["op"][of_op]
    for op in np.unique(ops):
        trait = op_of(nodes[op]).work
        tasks = of_op[np.searchsorted(ops, op) : np.searchsorted(ops, op, "right")]
        if trait is None:
            continue
        found = trait(nodes[op], rows["tile"][tasks].astype(np.int64), context)
        for field in fields(TaskWork):
            getattr(work, field.name)[tasks] = getattr(found, field.name)
    return work


def _fillers(tables: Tables, nodes: Sequence[OpNode], rows: npt.NDArray[np.void], index: Indices) -> Indices:
    """For each task that streams weights by slot, the place of the task that fills the slots; else -1."""
    made = {v.tensor: op for op in np.unique(rows["op"]) for v in nodes[op].outputs}  # of this step program
    by_slot = sums(tables["tape"]["slot"] >= 0, rows, "tape") > 0
    place = np.full(len(nodes), -1, np.int64)
    place[rows["op"]] = np.arange(len(index))
    source = np.full(len(nodes), -1, np.int64)
    for op in np.unique(rows["op"][by_slot]):
        slots = op_of(nodes[op]).slots
        filled = made.get(slots(nodes[op]).tensor) if slots else None
        source[op] = -1 if filled is None else place[filled]
    return np.where(by_slot, source[rows["op"]], -1)
