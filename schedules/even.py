"""even: every byte of weights and caches is read by exactly one device.

Weights are divided by rows, in whole panels: q_a and kv_a, the indexer's and the router's, gate and up projections of
shared and routed experts, the lm_head; and by heads, those that make queries. Each device uses the results of its
shards itself: the next matrix is divided by columns in the same way (o_proj, down_proj), and every device reduces the
partial sums. Where rows don't divide evenly, the devices with the fewest bytes so far take one more panel. Caches are
divided by blocks of the context, one device after the other. The weights of norms and the router's bias are not
divided, since every device needs them (0.1 % of GLM-5's bytes); neither is the embedding's row, which device 0 reads.
"""

from __future__ import annotations

from tilecompile.ir.graph import OpGraph
from tilecompile.ir.node import OpNode, View
from tilecompile.ir.placement import CONTEXT, Part, Placement, Split
from tilecompile.ir.tiling import PANEL
from tilecompile.ops.base import op_of
from tilecompile.runtime.weight_formats import stack_bytes
from tilecompile.schedules.shares import COLS, HEADS, ROWS, attentions, looks_up, mlps, summed, takes_cols

BLOCK = 64
"""Most positions of a block of the context; a device holds at most one block more than the others."""

BLOCKS = 4
"""Fewest blocks of a device in a full cache; in a short one the blocks are smaller."""


def place(graph: OpGraph, devices: int, reduction: str | None = None) -> Placement:
    """Divides everything; all devices reduce the sums (`shares.summed` chooses the form).

    ValueError for devices that the model can't be split over.
    """
    if devices < 2:
        raise ValueError(f"placement even is for 2 devices or more, got {devices}")
    return _Recipe(graph, devices, reduction).run()


class _Recipe:
    """Walks the graph once; `made` are the shards in which a tensor is made: its number of units, and their ranges."""

    def __init__(self, graph: OpGraph, devices: int, reduction: str | None) -> None:
        self.graph, self.devices, self.reduction = graph, devices, reduction
        self.made: dict[str, tuple[int, tuple[Part, ...]]] = {}
        self.load = [0.0] * devices
        self.heads: dict[str, int] = {}
        self.attentions = {node.name for node in attentions(graph)}
        mlps(graph, tuple(range(devices)))  # refuses more devices than there are rows
        for node in graph.nodes:
            if _by_heads(node) and node.name not in self.attentions:
                self.heads[node.inputs[0].tensor] = node.inputs[0].shape[1]

    def run(self) -> Placement:
        return Placement("even", self.devices, {n.name: self.split(n) for n in self.graph.nodes})

    def split(self, node: OpNode) -> Split:
        """The split of an operator."""
        op = op_of(node)
        if node.name in self.attentions and not op.context_rule:
            raise ValueError(f"placement even divides caches by context, which {node.op} ({node.name}) can't be")
        if node.name in self.attentions:
            heads = op.split_axes[HEADS].extent(node)
            split = Split(HEADS, self.shares(node, heads, op.split_axes[HEADS].unit(node)))
            self.made[node.outputs[0].tensor] = heads, split.parts
            return Split(CONTEXT, self.cyclic(node).parts, split.parts, self.cyclic(node).block)
        if op.context_rule:
            return self.cyclic(node)
        if looks_up(node) or op.samples:  # device 0 has the ids and the sink
            return Split.whole((0,))
        if _by_heads(node) and (parts := self.inherited(node.inputs[0], node.inputs[0].shape[1])):
            return self.divided(node, HEADS, node.inputs[0].shape[1], parts)
        if takes_cols(node):
            size = node.weights[0].shape[-1]
            if parts := self.inherited(node.inputs[0], size):
                return summed(node, self.divided(node, COLS, size, parts), self.devices, self.reduction)
        if ROWS in op.split_axes:
            size, heads = node.weights[0].shape[-2], self.heads.get(node.outputs[0].tensor, 1)
            unit = size // heads if heads > 1 and size % heads == 0 else PANEL
            return self.divided(node, ROWS, size, self.shares(node, size, unit))
        return Split.whole(tuple(range(self.devices)))

    def cyclic(self, node: OpNode) -> Split:
        """Blocks of the context: of BLOCK positions, or of fewer in a short cache."""
        rows = next(t.rows for t in self.graph.tensors.values() if t.role == "cache")
        block = BLOCK
        while block > 1 and rows < BLOCKS * self.devices * block:
            block //= 2
        return Split.cyclic(min(self.devices, -(-rows // block)), block)

    def divided(self, node: OpNode, axis: str, size: int, parts: tuple[Part, ...]) -> Split:
        """The split of an operator, whose bytes are added to the devices' loads."""
        for part in parts:
            self.load[part.device] += _bytes(node) * (part.end - part.begin) / size
        if axis != COLS:
            self.made[node.outputs[0].tensor] = size, parts
        return Split(axis, parts)

    def shares(self, node: OpNode, size: int, unit: int) -> tuple[Part, ...]:
        """Shares in whole units; those that are left over go to the devices with the smallest load.

        Outside the layers they go to the first devices: there two programs may share a weight, then stored once.
        """
        each, left = divmod(-(-size // unit), self.devices)
        order = sorted(range(self.devices), key=lambda d: self.load[d]) if node.layer is not None else range(left)
        more = set(list(order)[:left])
        parts, at = [], 0
        for device in range(self.devices):
            end = min(size, at + (each + (device in more)) * unit)
            if end > at:
                parts.append(Part(device, at, end))
            at = end
        return tuple(parts)

    def inherited(self, view: View, size: int) -> tuple[Part, ...] | None:
        """The shards in which an operand of `size` elements is made; None if they don't hold whole elements."""
        units, parts = self.made.get(view.tensor, (1, ()))
        if any(p.begin * size % units or p.end * size % units for p in parts):
            return None
        return tuple(Part(p.device, p.begin * size // units, p.end * size // units) for p in parts) or None


def _by_heads(node: OpNode) -> bool:
    """Whether an operator works on several heads, each for itself."""
    axis = op_of(node).split_axes.get(HEADS)
    return axis is not None and axis.extent(node) > 1


def _bytes(node: OpNode) -> int:
    """Bytes of weights that a step of one token reads: step programs of any size divide weights alike."""
    total = sum(stack_bytes(w.shape, w.dtype) for w in node.weights)
    slots = op_of(node).slots
    if slots is None:
        return total
    return total * (node.attrs.get("per_token") or slots(node).shape[1]) // node.weights[0].shape[0]
