"""repetition: plans a model of many equal layers as a short one, some layers of which are repeated.

The passes plan the short model, and `runtime/folder/repeat.py` makes the tables of the whole program. The proof doesn't
rely on this: it is of the whole program.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

import numpy as np

from tilecompile.ir.graph import Tensor
from tilecompile.ir.node import OpNode, View
from tilecompile.ir.placement import PlacedGraph
from tilecompile.ir.program import EngineGraph, Program
from tilecompile.runtime.folder.repeat import Line, expand, expanded_sizes, line_of
from tilecompile.runtime.folder.rows import offsets, owners
from tilecompile.runtime.format import ARENAS
from tilecompile.runtime.names import PUSH, in_layer

KEPT = (3, 4)
"""Periods that are kept: the first, which follows other layers, the repeated one, and the last; then one more.

A period refers to the one before it, which must be like it. The first one may not be: operators are sorted by depth,
and where it follows layers of another kind, its exchanges may have other depths.
"""

MOST = 16
"""Most layers of a period."""


V = TypeVar("V")


@dataclass(frozen=True)
class Move:
    """Adds `by` to the numbers of the layers from `least` on, also in names."""

    least: int
    by: int

    def layer(self, layer: int | None) -> int | None:
        """The new number of a layer."""
        return layer if layer is None or layer < self.least else layer + self.by

    def name(self, name: str, layer: int | None) -> str:
        """The new name of what belongs to a layer."""
        return name if layer is None or layer < self.least else in_layer(name, layer, layer + self.by)

    def tensor(self, tensor: Tensor) -> Tensor:
        """The tensor with its new name and layer."""
        name, origin = (self.name(name, tensor.layer) for name in (tensor.name, tensor.origin))
        return replace(tensor, name=name, origin=origin, layer=self.layer(tensor.layer))

    def node(self, node: OpNode, layers: Mapping[str, int | None]) -> OpNode:
        """The operator with its new names and layer; `layers` are those of the tensors."""

        def views(found: tuple[View, ...]) -> tuple[View, ...]:
            return tuple(v.of_tensor(self.name(v.tensor, layers[v.tensor])) for v in found)

        # A push belongs to the layer that reads, what it pushes may be an earlier layer's.
        of = layers[node.outputs[0].tensor] if node.role == PUSH else node.layer
        name, origin = self.name(node.name, of), self.name(node.origin, of)
        moved = replace(node, name=name, origin=origin, layer=self.layer(node.layer))
        return replace(moved, inputs=views(node.inputs), weights=views(node.weights), outputs=views(node.outputs))


@dataclass(frozen=True)
class Repeat:
    """Layers `layer` to `layer + layers - 1` of the short model occur `times` times in the whole one."""

    layer: int
    layers: int
    times: int

    def copies(self, layer: int | None) -> int:
        """How often a layer occurs in the whole model; 1 for None."""
        return self.times if layer is not None and 0 <= layer - self.layer < self.layers else 1

    def whole(self, items: Sequence[V], line: Line, moved: Callable[[V, Move], V]) -> list[V]:
        """The items of the whole model; `moved(item, move)` is an item in another layer."""
        out: list[V] = []
        after, last = 0, self._move(self.times - 1, self.layer)
        for begin, end in zip(line.begin.tolist(), line.end.tolist(), strict=True):
            out += [moved(item, last) for item in items[after:begin]]
            for copy in range(self.times):
                out += [moved(item, self._move(copy, self.layer - self.layers)) for item in items[begin:end]]
            after = end
        return out + [moved(item, last) for item in items[after:]]

    def by_layer(self, layers: Iterable[tuple[str, int | None]]) -> list[tuple[str, str, Move]]:
        """For names with their layers: each name of the whole model, the short model's name, and the move."""
        out: list[tuple[str, str, Move]] = []
        for again, group in groupby(layers, lambda item: self.copies(item[1]) > 1):
            found = list(group)
            for move in [self._move(t, self.layer) for t in (range(self.times) if again else [self.times - 1])]:
                out += [(move.name(name, layer), name, move) for name, layer in found]
        return out

    def _move(self, copies: int, least: int) -> Move:
        return Move(least, copies * self.layers)


def whole_program(short: Program, repeat: Repeat, operators: EngineGraph, whole: EngineGraph) -> Program:
    """The program of the whole model, from the operators of the short one and its own (`whole_graph`).

    `tiles` stay those of the short one: there are no weights to pack.
    """
    buffers, weights = (line_of(short.tables, name) for name in ("buffers", "weights"))
    sizes = expanded_sizes(short.tables, short.sizes())
    tables = expand(short.tables)
    layers = operators.layers
    placed = repeat.whole(short.buffers, buffers, lambda b, move: replace(b, tensor=move.tensor(b.tensor)))
    offsets = tables["buffers"]["offset"].tolist()
    return replace(
        short,
        tables=tables,
        weights=repeat.whole(short.weights, weights, lambda name, move: move.name(name, layers[name])),
        operators=[node.name for node in whole.nodes],
        buffers=[replace(b, index=i, offset=offset) for i, (b, offset) in enumerate(zip(placed, offsets, strict=True))],
        arena_bytes=[{name: int(x) for name, x in zip(ARENAS, row, strict=True) if name != "weight"} for row in sizes],
        pool_bytes=sizes[:, ARENAS.index("weight")].tolist(),
        io={name: int(buffers.at(np.array([b]), 0)[0]) for name, b in short.io.items()},
        outputs=[
            {name: int(buffers.at(np.array([b]), 0)[0]) for name, b in outputs.items()} for outputs in short.outputs
        ],
    )


def whole_graph(short: EngineGraph, repeat: Repeat, program: Program) -> EngineGraph:
    """The operators and tensors of the whole model; `program` is the short one."""
    line, layers = line_of(program.tables, "operators"), short.layers
    nodes = iter(repeat.whole(short.nodes, line, lambda node, move: move.node(node, layers)))
    counts, begin = {}, 0
    for name, graph in short.programs.items():
        stored = np.array([begin, begin + len(graph.nodes)])
        counts[name], begin = int(np.diff(line.at(stored, 0))[0]), int(stored[1])
    programs = {}
    for name, graph in short.programs.items():
        found = repeat.by_layer((tensor.name, tensor.layer) for tensor in graph.tensors.values())
        tensors = {new: move.tensor(graph.tensors[old]) for new, old, move in found}
        last = {old: new for new, old, _ in found}
        outputs = tuple(last[output] for output in graph.outputs)
        programs[name] = replace(
            graph, tensors=tensors, nodes=[next(nodes) for _ in range(counts[name])], outputs=outputs
        )
    return EngineGraph(programs)


def whole_placed(short: PlacedGraph, repeat: Repeat, operators: EngineGraph) -> PlacedGraph:
    """The placed graph of the whole model, whose operators are given."""
    splits, layer = short.placement.splits, {n.undivided: n.layer for n in short.graph.nodes if n.role != PUSH}
    whole = {new: splits[old] for new, old, _ in repeat.by_layer((name, layer[name]) for name in splits)}
    return PlacedGraph(operators.programs[short.graph.program], replace(short.placement, splits=whole))


def agrees(program: Program, operators: EngineGraph) -> bool:
    """Whether the tables of a whole program have each operator's operands and weights, by name, where they are used.

    They may not, where the repeated layers differ from those before them. The proof doesn't check names.
    """
    nodes = operators.nodes
    ins, operands, tape = (program.tables[name] for name in ("instructions", "operands", "tape"))
    counts = np.array([len(n.operands) for n in nodes])
    buffers = [program.buffers[b] for b in operands["buffer"].tolist()]
    views = [(v.tensor, n.device) for n in nodes for v in n.operands]
    if len(buffers) != len(views) or (ins["operand_begin"] != offsets(counts)[ins["op"]]).any():
        return False
    if any(
        b.tensor.name != name or (b.arena == "weight" and b.device != at)
        for b, (name, at) in zip(buffers, views, strict=True)
    ):
        return False
    number = {name: i for i, name in enumerate(program.weights)}
    streamed = np.array([[number[n.weights[k].tensor] if k < len(n.weights) else -1 for k in range(2)] for n in nodes])
    tensor = program.tables["tiles"]["tensor"][tape["tile"]].astype(np.int64)
    op = ins["op"][owners(ins["tape_count"])]
    return bool((tensor[:, None] == streamed[op]).any(axis=1).all())


def shortened(kinds: Sequence[Hashable], kept: int = KEPT[0]) -> tuple[list[int], Repeat] | None:
    """The layers that a short model has, and how they are repeated; None where that would save no layer.

    `kinds` are those of the whole model's layers. Of the longest stretch of equal periods `kept` are kept.
    """
    saved, first, period = 0, 0, 1
    for length in range(1, MOST + 1):
        for begin in range(len(kinds)):
            end = begin + length
            while end < len(kinds) and kinds[end] == kinds[end - length]:
                end += 1
            spare = ((end - begin) // length - kept) * length
            if spare > saved:
                saved, first, period = spare, begin, length
    if not saved:
        return None
    layers = [*range(first + kept * period), *range(first + kept * period + saved, len(kinds))]
    return layers, Repeat(first + (kept - 2) * period, period, 1 + saved // period)
