"""distribute: turns a placed graph into operators of single devices, with the exchanges between them.

Every activation and cache has a copy on each device that touches it (`copies.py`); a device's operators write the
columns that the placement gives them, and what another device reads of them is pushed to it: an all-gather. Where the
shards are partial sums, each device's sum is a slot of one tensor; the slots are pushed to the devices that reduce
them. An operator of its own computes their sum in the order of the devices, with the original operator's epilogue. If
every device reduces all columns, that is a one-shot all-reduce; if each reduces some columns and pushes them, it is the
two-step form: reduce-scatter, then all-gather. Operators that are divided by blocks of the context are added by the op
(`TileOp.context_rule`); `direct.py` removes the pushes that aren't needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tilecompile.ir.expr import Expr, substitute
from tilecompile.ir.graph import OpGraph
from tilecompile.ir.node import OpNode, View
from tilecompile.ir.placement import CONTEXT, Part, Placement, Split
from tilecompile.ops.base import SplitAxis, epilogue_begin, op_of
from tilecompile.ops.map import MAP
from tilecompile.passes.order import by_depth
from tilecompile.passes.place.copies import Copies, local
from tilecompile.passes.place.direct import direct
from tilecompile.runtime.names import PARTIAL, SUM

ACC: Expr = ("acc", 0)


def distribute(graph: OpGraph, placement: Placement) -> OpGraph:
    """The operators of all devices, sorted by depth. ValueError where a placement can't be carried out."""
    if placement.devices == 1:
        return graph
    return by_depth(direct(_Distributor(graph, placement).run()))


@dataclass(frozen=True)
class _Epilogue:
    """An expression over an accumulator, and the further inputs that it reads."""

    expr: Expr
    inputs: tuple[View, ...]


class _Distributor:
    """Walks the graph once."""

    def __init__(self, graph: OpGraph, placement: Placement) -> None:
        self.graph, self.placement = graph, placement
        self.copies = Copies(graph)
        self.deferred = self.local_sums()

    def run(self) -> OpGraph:
        copies = self.copies
        for node in self.graph.nodes:
            copies.layer = node.layer
            if op_of(node).is_sink:
                copies.add(node, 0, node.inputs, (), ())
                continue
            split = self.split(node)
            if split.axis is None:
                for part in split.parts:
                    copies.add(node, part.device, node.inputs, node.weights, node.outputs)
            elif split.axis == CONTEXT:
                rule = op_of(node).context_rule
                if rule is None:
                    raise ValueError(f"{node.name} is split by context, {node.op} can't be")
                rule(copies, node, split)
            else:
                self.sharded(node, split)
        outputs = tuple(local(copies.full[name], 0) for name in self.graph.outputs)
        return OpGraph(self.graph.program, self.graph.tokens, copies.tensors, copies.nodes, outputs)

    def local_sums(self) -> dict[str, str]:
        """Pairs of operators with partial sums, where only the second adds the first one's result: second by first."""
        found: dict[str, str] = {}
        producer = self.graph.producer()
        consumers = self.graph.consumers()
        for node in self.graph.nodes:
            if not self.partial(node):
                continue
            for view in node.inputs[epilogue_begin(node) :]:
                other = producer.get(view.tensor)
                if other is None or not self.partial(other) or len(consumers[view.tensor]) != 1:
                    continue
                leaf = ("in", node.inputs.index(view) - epilogue_begin(node))
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
        axis = op_of(node).split_axes.get(split.axis or "") if split else None
        return axis is not None and axis.output is None

    def sharded(self, node: OpNode, split: Split) -> None:
        assert split.axis is not None
        axis = op_of(node).split_axes.get(split.axis)
        if axis is None:
            raise ValueError(f"{node.name} is split by {split.axis}, {node.op} can't be")
        if axis.output is None:
            self.summed(node, split, axis)
            return
        for part in split.parts:
            inputs, weights = self.cut(node, axis, part)
            outputs = tuple(v.narrow(axis.output, part.begin, part.end) for v in node.outputs)
            self.copies.add(node, part.device, inputs, weights, outputs)

    def cut(self, node: OpNode, axis: SplitAxis, part: Part) -> tuple[tuple[View, ...], tuple[View, ...]]:
        """Inputs and weights of one device's part. ValueError for a cut that no operand can follow."""
        first, extent = epilogue_begin(node), axis.extent(node)
        if node.attrs.get("norm") is not None and 0 in axis.inputs:
            raise ValueError(f"{node.name} can't be split over what its norm needs whole")

        def narrowed(view: View, dimension: int | None) -> View:
            if dimension is None:
                return view
            size = view.shape[dimension]
            if part.begin * size % extent or part.end * size % extent:
                cut = f"{part.begin}:{part.end} of {extent}"
                raise ValueError(f"{node.name} can't be split at {cut}: {view.tensor} has {size} elements there")
            return view.narrow(dimension, part.begin * size // extent, part.end * size // extent)

        inputs = tuple(narrowed(v, axis.extra if i >= first else axis.inputs.get(i)) for i, v in enumerate(node.inputs))
        return inputs, tuple(narrowed(w, axis.weights) for w in node.weights)

    def summed(self, node: OpNode, split: Split, axis: SplitAxis) -> None:
        """Partial sums and their sum; or just the partial sums, where another operator's sum reduces them too."""
        own, rest = self.terms(node)
        slots = self.partial_sums(node, split, axis, own)
        if slots is not None:
            self.sum_of(node, split, slots, rest)

    def terms(self, node: OpNode) -> tuple[_Epilogue, _Epilogue]:
        """A node's epilogue in two: what each device applies to its own sum, and what is applied to the total."""
        extra = node.inputs[epilogue_begin(node) :]
        expr: Expr = node.attrs.get("epilogue") or ACC
        if node.name not in self.deferred:
            return _Epilogue(ACC, ()), _Epilogue(expr, extra)
        other = next(n for n in self.graph.nodes if n.name == self.deferred[node.name])
        leaf = ("in", extra.index(other.outputs[0]))
        first, *more = (a for a in _addends(expr) if a != leaf)
        for term in more:
            first = ("add", first, term)
        return _Epilogue(("add", ACC, ("in", 0)), (other.outputs[0],)), _Epilogue(first, extra)

    def partial_sums(self, node: OpNode, split: Split, axis: SplitAxis, own: _Epilogue) -> View | None:
        """Adds each device's operator. Its results are slots of a tensor, which is returned.

        None where another operator reduces them: then every device has a sum of its own under the same name.
        """
        (out,) = node.outputs
        attrs = {k: v for k, v in node.attrs.items() if k != "epilogue"}
        attrs |= {"epilogue": own.expr} if own.inputs else {}
        bare = replace(node, role=PARTIAL, attrs=attrs, inputs=(*node.inputs[: epilogue_begin(node)], *own.inputs))
        slots = None
        if node.name not in self.deferred.values():
            tensor = self.graph.tensors[out.tensor]
            shape = (tensor.rows, len(split.parts), tensor.cols)
            slots = self.copies.make(f"{tensor.name}.partial", shape, tensor.dtype)
        for i, part in enumerate(split.parts):
            inputs, weights = self.cut(bare, axis, part)
            result = out if slots is None else _slot(slots, out, i)
            self.copies.add(bare, part.device, inputs, weights, (result,), private=slots is None)
        return slots

    def sum_of(self, node: OpNode, split: Split, slots: View, rest: _Epilogue) -> None:
        """Adds operators that reduce the slots, in the order of the devices, with the rest of the node's epilogue."""
        (out,) = node.outputs
        count = len(split.parts)
        used = sorted({leaf[1] for leaf in _inputs_of(rest.expr)})
        total: Expr = ("in", 0)
        for i in range(1, count):
            total = ("add", total, ("in", i))

        def renumber(leaf: Expr) -> Expr:
            return total if leaf == ACC else ("in", count + used.index(leaf[1])) if leaf[0] == "in" else leaf

        views = (*(_slot(slots, out, i) for i in range(count)), *(rest.inputs[i] for i in used))
        attrs = {"expr": substitute(rest.expr, renumber), **node.predicate}
        adding = OpNode(f"{node.name}.sum", MAP.name, views, (), (out,), attrs, node.layer, 0, node.undivided, SUM)
        for part in split.adds:
            inputs = tuple(v.narrow(1, part.begin, part.end) for v in views)
            self.copies.add(adding, part.device, inputs, (), (out.narrow(1, part.begin, part.end),))


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
