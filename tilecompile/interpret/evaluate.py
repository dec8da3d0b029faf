"""evaluate: one task of an engine's program in torch, by the eager reference of its whole operator.

The reference sees the operands as they are stored in the buffers, and weights that are NaN but for the rows that the
task's tape runs hold. Of its result only the boxes that the task declares as written are copied to the buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import tilecompile.ops  # noqa: F401  (registers the tile ops)
from tilecompile.engine.graph_json import read_graph
from tilecompile.errors import EngineError
from tilecompile.ir.node import OpNode, View
from tilecompile.ops.base import op_of, reference_values
from tilecompile.ops.dtypes import torch_dtype
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.folder.rows import SPANS, span
from tilecompile.runtime.folder.tables import Tables
from tilecompile.runtime.format import ARENAS, DTYPES, LAYOUTS, NONE, PANEL, SAMPLING_INPUTS, WRITE
from tilecompile.runtime.weight_formats import format_of
from tilecompile.targets.codec import Copy
from tilecompile.targets.codecs import CODECS

POISON = 0x7FC07FC0
"""NaN as f32 and as a pair of bf16, and an index out of every range as i32."""


BY_TOKEN = ("activation", "input", "state")
"""Roles of tensors whose rows are tokens of a step, or that have one row."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch with a single thread: tasks are too small for more, and sums keep one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Memory:
    """The arenas and pools of all devices, laid out as the kernel has them."""

    def __init__(self, manifest: Manifest, tables: Tables) -> None:
        self.tables = tables
        self.areas: list[dict[str, Tensor]] = []
        for arena, pool in zip(manifest.arenas, manifest.pools, strict=True):
            areas = {n: torch.empty(-(-int(arena[n]) // 4), dtype=torch.int32) for n in ARENAS if n != "weight"}
            areas["weight"] = torch.from_numpy(np.fromfile(manifest.file(pool["file"]), np.uint8))
            self.areas.append({name: area.view(torch.uint8) for name, area in areas.items()})
        self.poison()
        self._buffers: dict[int, Tensor] = {}

    def poison(self, *arenas: str) -> None:
        """Fills some arenas (without arguments all but the weights) with NaN."""
        for areas in self.areas:
            for name in arenas or [n for n in ARENAS if n != "weight"]:
                areas[name].view(torch.int32).fill_(POISON)

    def area(self, device: int, arena: str, begin: int, end: int) -> npt.NDArray[np.uint8]:
        """A copy of bytes `begin` to `end` of an arena."""
        return self.areas[device][arena].numpy()[begin:end].copy()

    def buffer(self, index: int) -> Tensor:
        """A buffer as a flat tensor that shares its memory."""
        if index not in self._buffers:
            b = self.tables["buffers"][index]
            area = self.areas[int(b["device"])][ARENAS[int(b["arena"])]]
            data = area[int(b["offset"]) : int(b["offset"]) + int(b["bytes"])]
            self._buffers[index] = data.view(torch_dtype(DTYPES[int(b["dtype"])]))
        return self._buffers[index]

    def matrix(self, index: int, data: Tensor) -> Tensor:
        """A buffer's flat tensor (or a copy of it) as the matrix that regions refer to."""
        b = self.tables["buffers"][index]
        return data.view(int(b["rows"]), int(b["cols"]))

    def view(self, data: Tensor, offset: int, view: View) -> Tensor:
        """A view of a buffer's flat tensor, from a byte offset on."""
        begin = offset // data.itemsize
        last = begin + sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True))
        if offset % data.itemsize or last >= data.numel() or data.dtype != torch_dtype(view.dtype):
            raise ValueError(f"operand {view} at byte {offset} doesn't fit a buffer of {data.numel()} {data.dtype}")
        return data.as_strided(view.shape, view.strides, data.storage_offset() + begin)


@dataclass(frozen=True)
class _Task:
    """What an instruction works on: operands (buffer, byte offset), written boxes, weight rows with their values.

    `by_token` are the tensors whose rows are tokens.
    """

    node: OpNode
    operands: list[tuple[int, int]]
    boxes: list[tuple[int, tuple[slice, slice]]]
    rows: list[tuple[Tensor, Tensor]]
    by_token: frozenset[str]


class Evaluator:
    """Runs single instructions of an engine on its `memory`."""

    def __init__(self, manifest: Manifest, tables: Tables) -> None:
        if not manifest.has_weights:
            raise EngineError(f"{manifest.folder}: the engine has no weights (it was compiled with --no-weights)")
        self.graph = read_graph(manifest)
        self._folder: Path = manifest.folder
        self._tables, self._nodes = tables, self.graph.nodes
        of_program = {
            name: frozenset(
                n for n, t in one.tensors.items() if t.role in BY_TOKEN and t.undivided not in SAMPLING_INPUTS
            )
            for name, one in self.graph.programs.items()
        }
        self._by_token = [of_program[name] for name, one in self.graph.programs.items() for _ in one.nodes]
        self._tensors: list[str] = manifest.data["weights"]["tensors"]
        names = [node.name for node in self._nodes]
        if names != manifest.data["operators"]:
            raise EngineError(f"{manifest.folder}: graph.json and engine.json list different operators")
        self.memory = Memory(manifest, tables)
        self._weights = {name: self._whole(number) for number, name in enumerate(self._tensors)}
        self.ops = {node.name: node.op for node in self._nodes}
        self.layers = {node.name: node.layer for node in self._nodes}
        self._tasks: dict[int, _Task] = {}

    def _whole(self, number: int) -> Tensor:
        """A streamed weight as [matrices, rows, cols], all NaN; f32 where tiles have scales."""
        w = self._tables["weights"][number]
        shape = (int(w["matrices"]), int(w["rows"]), int(w["cols"]))
        return torch.full(shape, float("nan"), dtype=CODECS[format_of(int(w["dtype"])).name].values)

    def name(self, instruction: int) -> str:
        """An instruction in words."""
        ins = self._tables["instructions"][instruction]
        tile = tuple(int(i) for i in ins["tile"])
        return f"task {self._nodes[int(ins['op'])].name}, tile {tile} (instruction {instruction})"

    def run(self, instruction: int, tokens: int, logits: bool) -> None:
        """Runs an instruction in a step of `tokens` tokens; with `logits` False not those that only the logits need."""
        try:
            if instruction not in self._tasks:
                self._tasks[instruction] = self._prepare(instruction)
            task = self._tasks[instruction]
            if logits or not task.node.predicate:
                with torch.inference_mode():
                    self._evaluate(task, tokens)
        except (ArithmeticError, LookupError, ValueError, RuntimeError) as error:
            what = f"{self.name(instruction)} can't be evaluated: {type(error).__name__} {error}"
            raise EngineError(f"{self._folder}: {' '.join(what.split())[:400]}") from error

    def _prepare(self, instruction: int) -> _Task:
        ins = self._tables["instructions"][instruction]
        node = self._nodes[int(ins["op"])]
        parts = {field: self._tables[SPANS[field]][span(ins, field)] for field in ("operand", "region", "tape")}
        operands = [(int(o["buffer"]), int(o["offset"])) for o in parts["operand"]]
        if len(operands) != len(node.operands):
            raise ValueError(f"{len(operands)} operands for {len(node.operands)} views")
        boxes = []
        for r in parts["region"][parts["region"]["mode"] == WRITE]:
            box = slice(int(r["row_begin"]), int(r["row_end"])), slice(int(r["col_begin"]), int(r["col_end"]))
            boxes.append((int(r["buffer"]), box))
        rows = []
        for run in {(int(r["offset"]), int(r["tile"])): r for r in parts["tape"]}.values():
            rows += self._unpack(run, self._tables["tiles"][int(run["tile"])])
        return _Task(node, operands, boxes, rows, self._by_token[int(ins["op"])])

    def _unpack(self, run: np.void, tile: np.void) -> list[tuple[Tensor, Tensor]]:
        """The rows of each parameter that a weight run fills, with their values from the pool."""
        pool = self.memory.areas[int(tile["device"])]["weight"]
        numbers = [int(tile[key]) for key in ("tensor", "second") if tile[key] != NONE]
        weights = [self._weights[self._tensors[n]] for n in numbers]
        begin, end, row_begin, row_end, col_begin, cols = (
            int(tile[key]) for key in ("begin", "end", "row_begin", "row_end", "col_begin", "cols")
        )
        stored, layout = format_of(int(self._tables["weights"]["dtype"][numbers[0]])), LAYOUTS[int(tile["layout"])]
        rows, count = row_end - row_begin, 1 if tile["gathered"] else end - begin  # matrices of a copy
        size = stored.tile_bytes(count * len(weights) * -(-rows // PANEL), cols, col_begin, layout)
        if int(run["bytes"]) != size:
            raise ValueError(f"weight run of {run['bytes']} bytes for matrices of {size}")
        filled, copy = [], Copy(len(weights), count, rows, cols, col_begin, layout)
        for first in range(begin, end, count):
            at = int(run["offset"]) + (first - begin) * int(run["stride"])
            data = pool[at : at + size].clone()
            for m, matrices in enumerate(CODECS[stored.name].unpack(data, copy)):
                for weight, values in zip(weights, matrices, strict=True):
                    filled.append((weight[first + m, row_begin:row_end, col_begin : col_begin + cols], values))
        return filled

    def _evaluate(self, task: _Task, tokens: int) -> None:
        """Runs the reference on copies of the buffers that the task writes, and copies the declared boxes back.

        Of operands that have rows of tokens it sees those of the step's `tokens`.
        """
        node = task.node
        copies = {b: self.memory.buffer(b).clone() for b, _ in task.boxes}
        operands = []
        for (b, offset), view in zip(task.operands, node.operands, strict=True):
            data = copies[b] if b in copies else self.memory.buffer(b)
            whole = self.memory.view(data, offset, view)
            operands.append(whole[:tokens] if view.tensor in task.by_token else whole)
        for target, values in task.rows:
            target.copy_(values)
        weights = [self._weights[v.tensor].as_strided(v.shape, v.strides, v.offset) for v in node.weights]
        inputs, outputs = operands[: len(node.inputs)], operands[len(node.inputs) :]
        results = reference_values(node, inputs, weights)
        for target, _ in task.rows:
            target.fill_(float("nan"))
        unwritten = op_of(node).unwritten
        if unwritten is not None:
            results[0] = results[0].masked_fill(unwritten(node, inputs), float("nan"))
        for output, found in zip(outputs, results, strict=True):
            value = found[: len(output)]  # an op that has its number of tokens as an attribute gives all of them
            if output.shape != value.shape or output.dtype != value.dtype:
                raise ValueError(f"the reference gives {value.dtype} {tuple(value.shape)}, want {tuple(output.shape)}")
            output.copy_(value)
        for b, box in task.boxes:
            self.memory.matrix(b, self.memory.buffer(b))[box] = self.memory.matrix(b, copies[b])[box]
