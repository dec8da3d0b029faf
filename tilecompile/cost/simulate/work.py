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

BY_TOKEN = ("elements", "products")
"""What each of a step's tokens adds of the work that an op states for one."""


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


def work_of(
    tables: Tables,
    nodes: Sequence[OpNode],
    index: Indices,
    device: Indices,
    context: int,
    carried: int = 1,
    tokens: int | None = None,
) -> Work:
    """The work of instructions `index`, each on a device, in one step.

    `context` counts the positions that the step's last token sees, its own included; `nodes` are the operators by
    `Instruction.op`. The step has `tokens` of the at most `carried` tokens of its program (None: all of them). Each
    token has its part of the activations, of the expert slots and of the products with caches; the rows of caches are
    those of one token, since tokens beside each other see and select mostly the same ones. An operator that works on
    fewer tokens than the program, such as the last one alone, has as many as its operands have rows.
    """
    tokens = carried if tokens is None else tokens
    rows = tables["instructions"][index]
    room = _room(nodes, rows["op"], carried)
    part = np.minimum(room, tokens) / room
    tables = tables | {"tape": _read_runs(tables, rows, part)}
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
        runs=sums(streamed > 0, rows, "tape").astype(np.float64),
        weights={name: found for name, found in weights.items() if found.any()},
        caches=np.zeros(len(index)),
        distinct=np.zeros(len(index)),
        products=np.zeros(len(index)),
        elements=elements * part,
        pushed=sums(np.where(away, area * size, 0.0), rows, "region") * part,
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
            times = min(room[tasks[0]], tokens) if field.name in BY_TOKEN else 1
            getattr(work, field.name)[tasks] = times * np.asarray(getattr(found, field.name))
    return work


def _room(nodes: Sequence[OpNode], ops: Indices, carried: int) -> Indices:
    """For how many tokens the operator of each task has room, of a program whose steps carry at most `carried`."""
    found = np.full(len(nodes), carried, np.int64)
    for op in np.unique(ops):
        rows = [v.shape[0] for v in nodes[op].operands if len(v.shape) > 1 and v.shape[0] <= carried]
        found[op] = max(rows, default=carried)
    return found[ops]


def _read_runs(tables: Tables, rows: npt.NDArray[np.void], part: Numbers) -> npt.NDArray[np.void]:
    """The tape of a step with a part of its program's tokens: runs of slots that then hold no expert have no bytes.

    `part` is each task's; each token fills equally many slots, in the worst case all with different experts.
    """
    tape: npt.NDArray[np.void] = tables["tape"].copy()
    entry, owner = entries(rows, "tape")
    slot, op = tape["slot"][entry].astype(np.int64), rows["op"][owner]
    slots = np.zeros(int(op.max(initial=0)) + 1, np.int64)
    np.maximum.at(slots, op, slot + 1)
    tape["bytes"][entry[slot >= np.ceil(slots[op] * part[owner])]] = 0
    return tape


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
