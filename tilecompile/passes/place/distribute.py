"""distribute: a placed graph as operators of single devices, with the exchanges between them.

Every activation and cache has a copy on each device that touches it (`copies.py`); a device's operators write the
columns that the placement gives them, and what another device reads of them is pushed to it: that is all-gather. Where
the shards are partial sums, each device's sum is a slot of one tensor, the slots are pushed to who adds them, and the
sum of the slots, in the order of the devices, with the operator's epilogue, is an operator of its own: added by
everybody that is a one-shot all-reduce, added in shares that are then pushed it is the two-step form. What is divided
by blocks of the context is in `by_context.py`; what needs no push of its own is in `direct.py`.
"""

from __future__ import annotations

from dataclasses import replace

from tilecompile.ir.expr import Expr, substitute
from tilecompile.ir.graph import OpGraph
from tilecompile.ir.node import OpNode, View
from tilecompile.ir.placement import CONTEXT, Part, Placement, Split
from tilecompile.ops.base import REGISTRY, Shard
from tilecompile.passes.order import by_depth
from tilecompile.passes.place.by_context import by_context
from tilecompile.passes.place.copies import Copies, local
from tilecompile.passes.place.direct import direct

ACC: Expr = ("acc", 0)


def distribute(graph: OpGraph, placement: Placement) -> OpGraph:
    """The operators of all devices, sorted by depth. ValueError where a placement can't be carried out."""
    if placement.devices == 1:
        return graph
    return by_depth(direct(_Distributor(graph, placement).run()))


class _Distributor:
    """Walks the graph once."""

    def __init__(self, graph: OpGraph, placement: Placement) -> None:
        self.graph, self.placement = graph, placement
        self.copies = Copies(graph)
        self.deferred = self.local_sums()

    def run(self) -> OpGraph:
        copies = self.copies
        for node in self.graph.nodes:
            if node.op == "commit":
                copies.add(node, 0, node.inputs, (), ())
                continue
            split = self.split(node)
            if split.axis is None:
                for part in split.parts:
                    copies.add(node, part.device, node.inputs, node.weights, node.outputs)
            elif split.axis == CONTEXT:
                by_context(copies, node, split)
            else:
                self.sharded(node, split)
        outputs = tuple(local(copies.full[name], 0) for name in self.graph.outputs)
        return OpGraph(self.graph.program, self.graph.tokens, copies.tensors, copies.nodes, outputs)

    def local_sums(self) -> dict[str, str]:
        """Operators with partial sums that only another one with partial sums adds: by the one that adds them."""
        found: dict[str, str] = {}
        producer = self.graph.producer()
        consumers = self.graph.consumers()
        for node in self.graph.nodes:
            if not self.partial(node):
                continue
            for view in node.inputs[_extra_begin(node) :]:
                other = producer.get(view.tensor)
                if other is None or not self.partial(other) or len(consumers[view.tensor]) != 1:
                    continue
                leaf = ("in", node.inputs.index(view) - _extra_begin(node))
                same = [p.device for p in self.split(other).parts] == [p.device for p in self.split(node).parts]
                plain = other.attrs.get("epilogue") is None and view == other.outputs[0]
                if same and plain and leaf in _addends(node.attrs["epilogue"]) and other.name not in found.values():
                    found[node.name] = other.name
                    break
        return found

    def split(self, node: OpNode) -> Split:
        return self.placement.splits[node.name]

    def partial(self, node: OpNode) -> bool:
        split = self.placement.splits.get(node.name)
        shard = REGISTRY[node.op].shards.get(split.axis or "") if split else None
        return shard is not None and shard.output is None

    def sharded(self, node: OpNode, split: Split) -> None:
        assert split.axis is not None
        if split.axis not in REGISTRY[node.op].shards:
            raise ValueError(f"{node.name} is split by {split.axis}, {node.op} can't be")
        shard = REGISTRY[node.op].shards[split.axis]
        if shard.output is None:
            self.summed(node, split, shard)
            return
        for part in split.parts:
            inputs, weights = self.cut(node, shard, part)
            outputs = tuple(v.narrow(shard.output, part.begin, part.end) for v in node.outputs)
            self.copies.add(node, part.device, inputs, weights, outputs)

    def cut(self, node: OpNode, shard: Shard, part: Part) -> tuple[tuple[View, ...], tuple[View, ...]]:
        """Inputs and weights of one device's part."""
        first = _extra_begin(node)
        if node.attrs.get("norm") is not None and 0 in shard.inputs:
            raise ValueError(f"{node.name} can't be split over what its norm needs whole")
        inputs = []
        for i, view in enumerate(node.inputs):
            axis = shard.extra if i >= first else shard.inputs.get(i)
            inputs.append(view if axis is None else view.narrow(axis, part.begin, part.end))
        weights = node.weights
        if shard.weights is not None:
            weights = tuple(w.narrow(shard.weights, part.begin, part.end) for w in weights)
        return tuple(inputs), weights

    def summed(self, node: OpNode, split: Split, shard: Shard) -> None:
        """Partial sums into slots, and who adds them; or, where another operator adds them, just partial sums."""
        (out,) = node.outputs
        first = _extra_begin(node)
        expr: Expr = node.attrs.get("epilogue") or ACC
        extra = list(node.inputs[first:])
        own_expr, own_extra = ACC, []
        if node.name in self.deferred:
            other = next(n for n in self.graph.nodes if n.name == self.deferred[node.name])
            leaf = ("in", extra.index(other.outputs[0]))
            rest = [a for a in _addends(expr) if a != leaf]
            expr = rest[0]
            for term in rest[1:]:
                expr = ("add", expr, term)
            own_expr, own_extra = ("add", ACC, ("in", 0)), [other.outputs[0]]
        bare = replace(node, inputs=(*node.inputs[:first], *own_extra))
        waits_for_sum = node.name not in self.deferred.values()
        slots = self.slots(out, len(split.parts)) if waits_for_sum else None
        for i, part in enumerate(split.parts):
            inputs, weights = self.cut(bare, shard, part)
            result = out if slots is None else _slot(slots, out, i)
            attrs = {k: v for k, v in node.attrs.items() if k != "epilogue"}
            attrs |= {"epilogue": own_expr} if own_extra else {}
            if slots is None:  # every device has a sum of its own under the same name: nothing that could be pushed
                self.copies.add(replace(node, attrs=attrs), part.device, inputs, weights, (result,), private=True)
            else:
                self.copies.add(replace(node, attrs=attrs), part.device, inputs, weights, (result,))
        if slots is None:
            return
        used = sorted({leaf[1] for leaf in _inputs_of(expr)})
        count = len(split.parts)
        total: Expr = ("in", 0)
        for i in range(1, count):
            total = ("add", total, ("in", i))

        def renumber(leaf: Expr) -> Expr:
            return total if leaf == ACC else ("in", count + used.index(leaf[1])) if leaf[0] == "in" else leaf

        views = [*(_slot(slots, out, i) for i in range(count)), *(extra[i] for i in used)]
        adding = OpNode(f"{node.name}.sum", "map", tuple(views), (), (out,), {}, node.layer)
        adding = replace(adding, attrs={"expr": substitute(expr, renumber), **_gate(node)})
        for part in split.adds:
            inputs = tuple(v.narrow(1, part.begin, part.end) for v in views)
            self.copies.add(adding, part.device, inputs, (), (out.narrow(1, part.begin, part.end),))

    def slots(self, out: View, count: int) -> View:
        """A tensor [tokens, count, columns] for the partial sums of an operator's result."""
        tensor = self.graph.tensors[out.tensor]
        return self.copies.make(f"{tensor.name}.partial", (tensor.rows, count, tensor.cols), tensor.dtype)


def _extra_begin(node: OpNode) -> int:
    """Number of the first input of the epilogue; past the end for an op that has none."""
    own = next((s.own for s in REGISTRY[node.op].shards.values() if REGISTRY[node.op].weight_args), None)
    return len(node.inputs) if own is None else own + (node.attrs.get("norm") is not None)


def _slot(slots: View, out: View, index: int) -> View:
    """Slot `index` as a view of the result's shape."""
    rows, _, cols = slots.shape
    return View(slots.tensor, (rows, cols), (slots.strides[0], 1), index * cols, out.dtype)


def _addends(expr: Expr) -> list[Expr]:
    return [*_addends(expr[1]), *_addends(expr[2])] if expr[0] == "add" else [expr]


def _inputs_of(expr: Expr) -> list[Expr]:
    found: list[Expr] = []

    def keep(leaf: Expr) -> Expr:
        if leaf[0] == "in":
            found.append(leaf)
        return leaf

    substitute(expr, keep)
    return found


def _gate(node: OpNode) -> dict[str, object]:
    return {"gate": node.attrs["gate"]} if node.attrs.get("gate") else {}
