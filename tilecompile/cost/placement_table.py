"""The table of a placement: devices and shard axis of each operator, bytes that devices read, the price in exchanges.

An operator that several layers have is one row. An exchange is all that is pushed of one operator's result: an
all-gather, or the partial sums of a reduction.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from tilecompile.cost.device_reads import distinct_reads
from tilecompile.ir.graph import OpGraph, pushes
from tilecompile.ir.node import OpNode, View
from tilecompile.ir.placement import PlacedGraph, Split
from tilecompile.ops.base import op_of
from tilecompile.runtime.format import DTYPE_BYTES
from tilecompile.runtime.names import PUSH, within_layer

INPUTS = "the step's inputs"
"""The row of what the controller writes."""


@dataclass(frozen=True)
class Row:
    """An operator of some layers: on how many devices it runs, along which axis it is divided, bytes read a device and
    step; its exchanges, and bytes pushed by all devices together, a step."""

    operator: str
    op: str
    layers: int
    devices: int
    axis: str
    read: tuple[int, ...]
    exchanges: int
    pushes: int
    pushed: int


@dataclass(frozen=True)
class PlacementTable:
    """The rows of a step program at a context; bytes that each device reads; pushes on the longest chain of operators.

    Bytes pushed count once for each device that they are pushed to.
    """

    context: int
    rows: tuple[Row, ...]
    read: tuple[int, ...]
    chain: int

    @property
    def exchanges(self) -> int:
        """Exchanges of a step."""
        return sum(r.exchanges for r in self.rows)

    @property
    def pushed(self) -> int:
        """Bytes that all devices push in a step."""
        return sum(r.pushed for r in self.rows)

    def stated(self) -> dict[str, Any]:
        """The table as engine.json states it."""
        return {
            "context": self.context,
            "read": list(self.read),
            "exchanges": self.exchanges,
            "chain": self.chain,
            "pushed": self.pushed,
            "operators": [asdict(row) | {"read": list(row.read)} for row in self.rows],
        }

    def __str__(self) -> str:
        head = ("operator", "op", "layers", "devices", "axis", "kB read a device", "exchanges", "pushes", "kB pushed")
        lines = [head]
        for r in self.rows:
            low, high = min(r.read) / 1e3, max(r.read) / 1e3
            span = f"{high:,.1f}" if high - low < 0.05 else f"{low:,.1f} to {high:,.1f}"
            counts = (str(r.exchanges), str(r.pushes), f"{r.pushed / 1e3:,.1f}")
            lines.append((r.operator, r.op, str(r.layers), str(r.devices), r.axis, span, *counts))
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        text = [
            "  ".join(f"{w:<{n}}" if i < 5 else f"{w:>{n}}" for i, (w, n) in enumerate(zip(line, widths, strict=True)))
            for line in lines
        ]
        total = f"{min(self.read) / 1e6:,.3f} to {max(self.read) / 1e6:,.3f} MB read a device"
        text.append(
            f"at a context of {self.context}: {total}; {self.exchanges} exchanges, of which {self.chain} one after the "
            f"other, push {self.pushed / 1e6:,.3f} MB"
        )
        return "\n".join(line.rstrip() for line in text) + "\n"


def placement_table(placed: PlacedGraph, context: int | None = None) -> PlacementTable:
    """The table at a context: by default that of full caches."""
    graph, devices = placed.graph, placed.placement.devices
    context = context or positions(graph)
    read: dict[str, list[float]] = defaultdict(lambda: [0.0] * devices)
    nodes: dict[str, list[OpNode]] = defaultdict(list)
    sent: dict[str, list[View]] = defaultdict(list)  # in another device's memory
    device = [0.0] * devices
    for node, size in distinct_reads(graph, context):
        device[node.device] += size
        if op_of(node).is_sink:
            continue
        name = (node.origin or INPUTS) if node.role == PUSH else node.undivided
        sent[name] += pushes(graph, node)
        if node.role != PUSH:
            nodes[name].append(node)
            read[name][node.device] += size
    grouped: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in (*([INPUTS] if sent[INPUTS] else []), *nodes):
        layer = nodes[name][0].layer if nodes[name] else None
        axis = _axis(placed.placement.splits[name]) if nodes[name] else "whole"
        grouped[within_layer(name, layer), axis].append(name)
    rows = []
    for (short, axis), names in grouped.items():
        mine = [n for name in names for n in nodes[name]]
        pushed = [view for name in names for view in sent[name]]
        total = tuple(round(sum(read[name][d] for name in names)) for d in range(devices))
        ops = " + ".join(dict.fromkeys(n.op for n in mine))
        where = len({n.device for n in mine}) or 1
        exchanges = len({graph.tensors[view.tensor].undivided for view in pushed})
        moved = sum(int(prod(view.shape)) * DTYPE_BYTES[view.dtype] for view in pushed)
        rows.append(Row(short, ops, len(names), where, axis, total, exchanges, len(pushed), moved))
    return PlacementTable(context, tuple(rows), tuple(map(round, device)), _chain(graph))


def positions(graph: OpGraph) -> int:
    """Positions that the caches hold, all shards together."""
    rows: dict[str, int] = defaultdict(int)
    for tensor in graph.tensors.values():
        if tensor.role == "cache":
            rows[tensor.undivided] = tensor.rows + (rows[tensor.undivided] if tensor.shard else 0)
    return max(rows.values(), default=1)


def _chain(graph: OpGraph) -> int:
    """The most pushes on a chain of dependent operators."""
    after: dict[str, list[tuple[int, int, int]]] = defaultdict(list)  # (begin, end, level) of columns
    most = 0
    for node in graph.nodes:
        read = ((b, e, v.tensor) for v in node.inputs for b, e in v.runs)
        level = max((n for b, e, t in read for x, y, n in after[t] if x < e and b < y), default=0)
        away = pushes(graph, node)
        most = max(most, level + bool(away))
        for view in (*node.outputs, *node.inputs[: len(op_of(node).mutated)]):
            after[view.tensor] += [(b, e, level + (view in away)) for b, e in view.runs]
    return most


def _axis(split: Split) -> str:
    text = "whole" if split.axis is None else split.axis
    if split.block:
        return f"{text}, blocks of {split.block}"
    return text + (f", {split.reduction}" if split.reduction else "")
