"""What the tasks of a step do at a context: the weights, cache values and activations that each of them touches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tilecompile.ir.node import OpNode
from tilecompile.ops.context import Context, rows_of
from tilecompile.runtime.folder.tables import Tables
from tilecompile.runtime.format import ARENAS, DTYPE_BYTES, DTYPES, WRITE

Numbers = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Work:
    """Of each task, in the order of the instructions that it was asked for; all arrays are [tasks].

    `runs` counts weight runs, `weights` bytes of weights by their type, `caches` bytes of caches and `distinct` those
    that no task before has read in this step, `products` multiplications with values of caches, `elements` activations
    that are read or written, `pushed` bytes that go to other devices. `gate` is the place of the task that chooses the
    experts whose weights it streams, or -1.
    """

    runs: Numbers
    weights: dict[str, Numbers]
    caches: Numbers
    distinct: Numbers
    products: Numbers
    elements: Numbers
    pushed: Numbers
    gate: Indices

    @property
    def streamed(self) -> Numbers:
        """Bytes of weights."""
        return sum(self.weights.values(), np.zeros(len(self.runs)))

    @property
    def read(self) -> float:
        """Bytes of weights and caches that all tasks together read, each once."""
        return float(self.streamed.sum() + self.distinct.sum())


def work_of(tables: Tables, nodes: Sequence[OpNode], index: Indices, device: Indices, context: int) -> Work:
    """The work of instructions `index`, each on a device, in one step.

    `context` counts the positions that the step's token sees, its own included; `nodes` are the operators by
    `Instruction.op`.
    """
    rows = tables["instructions"][index]
    tape, tiles = tables["tape"], tables["tiles"]
    dtype = tables["weights"]["dtype"][tiles["tensor"][tape["tile"]]] if len(tape) else np.zeros(0, np.int64)
    weights = {name: _sums(np.where(dtype == code, tape["bytes"], 0), rows, "tape") for code, name in enumerate(DTYPES)}
    regions, buffers = tables["regions"], tables["buffers"]
    arena = buffers["arena"][regions["buffer"]]
    area = (regions["row_end"].astype(np.int64) - regions["row_begin"]) * (
        regions["col_end"].astype(np.int64) - regions["col_begin"]
    )
    elements = _sums(np.where(arena == ARENAS.index("cache"), 0, area), rows, "region")
    reader = np.repeat(device, rows["region_count"])
    at = _entries(rows, "region")
    away = np.zeros(len(regions), bool)
    away[at] = (buffers["device"][regions["buffer"][at]] != reader) & (regions["mode"][at] == WRITE)
    size = np.array([DTYPE_BYTES[name] for name in DTYPES])[buffers["dtype"][regions["buffer"]]]
    work = Work(
        runs=rows["tape_count"].astype(np.float64),
        weights={name: found for name, found in weights.items() if found.any()},
        caches=np.zeros(len(index)),
        distinct=np.zeros(len(index)),
        products=np.zeros(len(index)),
        elements=elements,
        pushed=_sums(np.where(away, area * size, 0), rows, "region"),
        gate=_gates(tables, nodes, rows, index),
    )
    of_op = np.argsort(rows["op"], kind="stable")
    ops = rows["op"][of_op]
    for op in np.unique(ops):
        if nodes[op].op in _AT_CONTEXT:
            tasks = of_op[np.searchsorted(ops, op) : np.searchsorted(ops, op, "right")]
            _AT_CONTEXT[nodes[op].op](work, nodes[op], tasks, rows["tile"][tasks].astype(np.int64), context)
    return work


def _entries(rows: npt.NDArray[np.void], what: str) -> Indices:
    """The entries of another table that instructions refer to, one instruction after the other."""
    begin, count = rows[f"{what}_begin"].astype(np.int64), rows[f"{what}_count"].astype(np.int64)
    return np.repeat(begin - np.append(0, np.cumsum(count)[:-1]), count) + np.arange(count.sum())


def _sums(values: npt.NDArray[np.generic], rows: npt.NDArray[np.void], what: str) -> Numbers:
    """The sum of each instruction's entries."""
    sums = np.append(0, np.cumsum(values.astype(np.float64)))
    begin = rows[f"{what}_begin"].astype(np.int64)
    found: Numbers = sums[begin + rows[f"{what}_count"]] - sums[begin]
    return found


def _gates(tables: Tables, nodes: Sequence[OpNode], rows: npt.NDArray[np.void], index: Indices) -> Indices:
    """Of each task with weights by slot the place of the dispatch that fills the slots."""
    made = {v.tensor: op for op, node in enumerate(nodes) if node.op == "dispatch" for v in node.outputs}
    by_slot = _sums(tables["tape"]["slot"] >= 0, rows, "tape") > 0
    place = np.full(len(nodes), -1, np.int64)
    place[rows["op"]] = np.arange(len(index))
    source = np.full(len(nodes), -1, np.int64)
    for op in np.unique(rows["op"][by_slot]):
        source[op] = next((place[made[v.tensor]] for v in nodes[op].inputs if v.tensor in made), -1)
    return np.where(by_slot, source[rows["op"]], -1)


def _index_score(work: Work, node: OpNode, tasks: Indices, tile: Indices, context: int) -> None:
    query, cache = node.inputs[0], node.inputs[2]
    _, heads, width = query.shape
    rows = rows_of(node, context) if context > node.attrs["topk"] else 0
    seen = np.clip(rows - tile[:, 0], 0, tile[:, 1] - tile[:, 0])
    work.products[tasks] = seen * heads * width
    work.caches[tasks] = work.distinct[tasks] = seen * width * DTYPE_BYTES[cache.dtype]
    work.elements[tasks] = seen + np.where(seen > 0, heads * (width + 1), 0)


def _topk_select(work: Work, node: OpNode, tasks: Indices, tile: Indices, context: int) -> None:
    topk = node.attrs["topk"]
    work.elements[tasks] = topk + (rows_of(node, context) if context > topk else 0)


def _mla_attention(work: Work, node: OpNode, tasks: Indices, tile: Indices, context: int) -> None:
    latent, rope, cache, selection = node.inputs[:4]
    share, most = Context.of(node), int(node.attrs.get("topk", selection.shape[1]))  # of all shares together
    if share and context > most:  # which positions are chosen isn't known: as many of each share
        most = -(-most // share.count)
    first = selection.offset if share is None else 0  # of the selection's entries; those that count come first
    heads, chosen = tile[:, 1] - tile[:, 0], max(0, min(rows_of(node, context) - first, most))
    ranks, width = latent.shape[2], latent.shape[2] + rope.shape[2]
    work.products[tasks] = chosen * heads * (width + ranks)
    work.caches[tasks] = chosen * width * DTYPE_BYTES[cache.dtype]
    work.distinct[tasks[:1]] = work.caches[tasks[:1]]
    work.elements[tasks] = chosen + heads * (chosen + width + ranks)


_AT_CONTEXT = {
    "index_score": _index_score,
    "topk_select": _topk_select,
    "topk_candidates": _topk_select,
    "mla_attention": _mla_attention,
}
"""Ops whose declared regions are all that they can reach, and whose work depends on the context."""
