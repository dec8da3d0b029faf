"""repetition: a model of many equal layers as a short one of which some layers are repeated.

The passes plan the short model, and `runtime/folder/repeat.py` makes the tables of the whole program. That is no proof
of anything: what is proved is the whole program. Names have the numbers of layers in them, so they are made here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

import numpy as np

from tilecompile.ir.node import OpNode, View
from tilecompile.ir.placement import PlacedGraph
from tilecompile.ir.program import EngineGraph, Program
from tilecompile.models.config import Glm5Config
from tilecompile.runtime.folder.repeat import Line, expand, expanded_sizes, line_of
from tilecompile.runtime.format import ARENAS

KEPT = (3, 4)
"""Periods that stay: the first, which follows other layers, the repeated one, and the last; then one more.

A period refers to the one before it, which must be like it. The first one may not be: operators are sorted by depth,
and where it follows layers of another kind, its exchanges may lie at other depths.
"""

MOST = 16
"""Layers of the longest period that is looked for."""


_LAYER = re.compile(r"(?<=\blayers\.)\d+")

V = TypeVar("V")


@dataclass(frozen=True)
class Repeat:
    """Layers `layer` to `layer + layers - 1` of the short model stand `times` times in the whole one."""

    layer: int
    layers: int
    times: int

    def copies(self, name: str) -> int:
        """How often the layer in a name stands in the whole model; 1 for a name without one."""
        found = _LAYER.search(name)
        return self.times if found and 0 <= int(found[0]) - self.layer < self.layers else 1

    def whole(self, items: Sequence[V], line: Line, moved: Callable[[V, Callable[[str], str]], V]) -> list[V]:
        """The items of the whole model. `moved` gives an item with all its names changed."""
        if not len(line.begin):
            return list(items)
        begin, end = int(line.begin[0]), int(line.end[0])
        out = list(items[:begin])
        for copy in range(self.times):
            out += [moved(item, self._move(copy, self.layer - self.layers)) for item in items[begin:end]]
        return out + [moved(item, self._move(self.times - 1, self.layer)) for item in items[end:]]

    def names(self, names: Sequence[str], line: Line) -> list[str]:
        """The names of the whole model."""
        return self.whole(names, line, lambda name, move: move(name))

    def by_layer(self, names: Iterable[str]) -> list[tuple[str, str]]:
        """The names of the whole model with those that they come from, by the layers in them alone."""
        out: list[tuple[str, str]] = []
        for again, group in groupby(names, lambda name: self.copies(name) > 1):
            found = list(group)
            for move in [self._move(t, self.layer) for t in (range(self.times) if again else [self.times - 1])]:
                out += [(move(name), name) for name in found]
        return out

    def _move(self, copies: int, least: int) -> Callable[[str], str]:
        """Moves the numbers of layers from `least` on in a name by so many copies."""
        by = copies * self.layers
        return lambda name: _LAYER.sub(lambda m: str(int(m[0]) + by * (int(m[0]) >= least)), name)


def whole_program(short: Program, repeat: Repeat) -> Program:
    """The program of the whole model. `tiles` stay those of the short one: there are no weights to pack."""
    buffers, operators, weights = (line_of(short.tables, name) for name in ("buffers", "operators", "weights"))
    sizes = expanded_sizes(short.tables, short.sizes())
    tables = expand(short.tables)
    placed = repeat.whole(
        short.buffers, buffers, lambda b, move: replace(b, tensor=replace(b.tensor, name=move(b.tensor.name)))
    )
    offsets = tables["buffers"]["offset"].tolist()
    return replace(
        short,
        tables=tables,
        weights=repeat.names(short.weights, weights),
        operators=repeat.names(short.operators, operators),
        buffers=[replace(b, index=i, offset=offset) for i, (b, offset) in enumerate(zip(placed, offsets, strict=True))],
        arena_bytes=[{name: int(x) for name, x in zip(ARENAS, row, strict=True) if name != "weight"} for row in sizes],
        pool_bytes=sizes[:, ARENAS.index("weight")].tolist(),
        io={name: int(buffers.at(np.array([b]), 0)[0]) for name, b in short.io.items()},
    )


def whole_graph(short: EngineGraph, repeat: Repeat, program: Program) -> EngineGraph:
    """The operators of the whole model; `program` is the short one."""
    nodes = iter(repeat.whole(short.nodes, line_of(program.tables, "operators"), _moved))
    counts = {name: len(nodes) for name, nodes in short.programs.items()}
    first = next(iter(counts))
    line = line_of(program.tables, "operators")
    counts[first] += int(line.gain[-1])
    return EngineGraph({name: tuple(next(nodes) for _ in range(count)) for name, count in counts.items()})


def whole_placed(short: PlacedGraph, repeat: Repeat, operators: EngineGraph) -> PlacedGraph:
    """The placed graph of the whole model, whose operators are given."""
    graph, splits = short.graph, short.placement.splits
    tensors = {new: replace(graph.tensors[old], name=new) for new, old in repeat.by_layer(graph.tensors)}
    placement = replace(short.placement, splits={new: splits[old] for new, old in repeat.by_layer(splits)})
    return PlacedGraph(replace(graph, tensors=tensors, nodes=list(operators.programs[graph.program])), placement)


def agrees(program: Program, operators: EngineGraph) -> bool:
    """Whether the tables of a whole program have each operator's operands and weights, by name, where they are used.

    They may not, where the repeated layers look different from those before them. The proof knows no names.
    """
    nodes = operators.nodes
    ins, operands, tape = (program.tables[name] for name in ("instructions", "operands", "tape"))
    counts = np.array([len(n.operands) for n in nodes])
    buffers = [program.buffers[b] for b in operands["buffer"].tolist()]
    views = [(v.tensor, n.device) for n in nodes for v in n.operands]
    if len(buffers) != len(views) or (ins["operand_begin"] != (np.cumsum(counts) - counts)[ins["op"]]).any():
        return False
    if any(
        b.tensor.name != name or (b.arena == "weight" and b.device != at)
        for b, (name, at) in zip(buffers, views, strict=True)
    ):
        return False
    number = {name: i for i, name in enumerate(program.weights)}
    streamed = np.array([[number[n.weights[k].tensor] if k < len(n.weights) else -1 for k in range(2)] for n in nodes])
    tensor = program.tables["tiles"]["tensor"][tape["tile"]].astype(np.int64)
    op = np.repeat(ins["op"], ins["tape_count"])
    return bool((tensor[:, None] == streamed[op]).any(axis=1).all())


def _moved(node: OpNode, move: Callable[[str], str]) -> OpNode:
    def views(found: tuple[View, ...]) -> tuple[View, ...]:
        return tuple(v.of_tensor(move(v.tensor)) for v in found)

    layer = None if node.layer is None else int(_LAYER.findall(move(f"layers.{node.layer}"))[0])
    inputs, weights, outputs = views(node.inputs), views(node.weights), views(node.outputs)
    return replace(node, name=move(node.name), inputs=inputs, weights=weights, outputs=outputs, layer=layer)


def shortened(config: Glm5Config, kept: int = KEPT[0]) -> tuple[Glm5Config, Repeat | None]:
    """A model with few layers, and how they are repeated; or the model itself where that would save none.

    Of the longest stretch of equal periods `kept` stay.
    """
    kinds = list(zip(config.mlp_layer_types, config.indexer_types, strict=True))
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
        return config, None
    cut = first + kept * period
    layers = [*range(cut), *range(cut + saved, len(kinds))]
    short = replace(
        config,
        num_hidden_layers=len(layers),
        mlp_layer_types=tuple(config.mlp_layer_types[i] for i in layers),
        indexer_types=tuple(config.indexer_types[i] for i in layers),
    )
    return short, Repeat(first + (kept - 2) * period, period, 1 + saved // period)
