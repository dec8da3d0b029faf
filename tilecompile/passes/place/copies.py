"""copies: the operators of all devices and the exchanges between them, which `distribute` adds one by one.

Every activation and cache has a copy on each device that touches it, of the full shape. Which columns of a copy are
valid is known, so before an operator that reads others a device that has them pushes them. A tensor that is divided
by blocks of the context has no copies but shards with rows of their own, which are read where they are written and
never pushed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from tilecompile.ir.graph import OpGraph, Tensor
from tilecompile.ir.node import OpNode, View
from tilecompile.ops.base import op_of
from tilecompile.ops.context import Context
from tilecompile.ops.push import PUSH as PUSH_OP
from tilecompile.runtime.names import PUSH


class Copies:
    """`full` are the tensors before they are copied, `tensors` and `nodes` become those of the distributed graph.

    `there[copy]` are the columns (begin, end) that a copy has, `written` those that each device wrote, `made` the
    undivided operator that makes a tensor, `shards` the shards by tensor and device; `layer` is that of the operators
    that are being added.
    """

    def __init__(self, graph: OpGraph) -> None:
        self.full = dict(graph.tensors)
        self.tensors: dict[str, Tensor] = {
            n: t for n, t in graph.tensors.items() if t.role in ("weight", "constant", "input")
        }
        self.nodes: list[OpNode] = []
        self.layer: int | None = None
        self.there: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self.written: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
        self.made: dict[str, str] = {}
        self.shards: dict[str, dict[int, Tensor]] = {}
        for tensor in graph.tensors.values():
            if tensor.role == "input":
                self.wrote(tensor.name, tensor.device, [(0, tensor.cols)])

    def make(self, name: str, shape: tuple[int, ...], dtype: str) -> View:
        """A new activation, of which devices will have copies."""
        self.full[name] = Tensor(name, shape, dtype, "activation", layer=self.layer)
        return View.of(name, shape, dtype)

    def make_shard(self, name: str, device: int, context: Context, shape: tuple[int, ...]) -> View:
        """A device's shard of a tensor: the rows of some blocks of the context; made if it isn't there."""
        shard = (context.index, context.count, context.block)
        own = replace(self.full[name], name=f"{name}.share", shape=shape, origin=name, shard=shard)
        self.full[own.name] = own
        copy = replace(own, name=local(own, device), device=device)
        self.tensors[copy.name] = copy
        self.shards.setdefault(name, {})[device] = own
        return View.of(own.name, shape, own.dtype)

    def shard(self, name: str, device: int, context: Context) -> View:
        """A device's shard of a tensor. ValueError if it has none of these blocks."""
        own = self.shards.get(name, {}).get(device)
        if own is None or own.shard != (context.index, context.count, context.block):
            raise ValueError(f"device {device} doesn't have shard {context.index} of the context of {name}")
        return View.of(own.name, own.shape, own.dtype)

    def add(
        self,
        node: OpNode,
        device: int,
        inputs: Iterable[View],
        weights: Iterable[View],
        outputs: Iterable[View],
        private: bool = False,
    ) -> None:
        """Adds a device's operator on the device's copies, after the exchanges that it needs.

        `private` results have the same name on every device but other contents, and are never pushed. ValueError if no
        device has what the operator needs.
        """
        inputs, outputs = tuple(inputs), tuple(outputs)
        mutated = len(op_of(node).mutated)
        for view in inputs:
            if view.tensor in self.shards:
                raise ValueError(f"{view.tensor} is divided by context, and {node.name} needs all of it")
            if self.full[view.tensor].role in ("activation", "input"):
                self.fetch(view, device, node.layer)
        self.nodes.append(
            replace(
                node,
                name=on_device(node.name, device),
                origin=node.undivided,
                inputs=tuple(self.on(view, device) for view in inputs),
                weights=tuple(weights),
                outputs=tuple(self.on(view, device) for view in outputs),
                device=device,
            )
        )
        for view in outputs:
            self.made[view.tensor] = node.undivided
            self.wrote(view.tensor, device, view.runs, private)
        for view in inputs[:mutated]:
            self.wrote(view.tensor, device, view.runs, private=True)

    def on(self, view: View, device: int) -> View:
        """The view of the device's copy, which is made if it isn't there."""
        tensor = self.full[view.tensor]
        name = local(tensor, device)
        if name not in self.tensors:
            role = "activation" if tensor.role == "input" else tensor.role
            origin = tensor.name if name != tensor.name else ""
            self.tensors[name] = replace(tensor, name=name, role=role, device=device, origin=origin)
        return view.of_tensor(name)

    def wrote(self, tensor: str, device: int, runs: list[tuple[int, int]], private: bool = False) -> None:
        """Records columns that a device has computed."""
        self.there[local(self.full[tensor], device)] += runs
        if not private:
            self.written[tensor] += [(begin, end, device) for begin, end in runs]

    def fetch(self, view: View, device: int, layer: int | None) -> None:
        """Pushes the columns of a view that the device's copy lacks, from the first device that wrote them."""
        tensor = self.full[view.tensor]
        copy = local(tensor, device)
        for begin, end in [gap for run in view.runs for gap in _missing(run, self.there[copy])]:
            at = begin
            while at < end:
                found = next(((b, e, d) for b, e, d in self.written[view.tensor] if b <= at < e), None)
                if found is None:
                    raise ValueError(f"no device has columns {at}:{end} of {view.tensor}, which device {device} needs")
                upto, source = min(end, found[1]), found[2]
                window = View(tensor.name, (tensor.rows, upto - at), (tensor.cols, 1), at, tensor.dtype)
                name = f"{tensor.name.removeprefix('%')}.push.{at}:{upto}@{source}>{device}"
                operands = (self.on(window, source),), (), (self.on(window, device),)
                made = self.made.get(view.tensor, "")
                self.nodes.append(OpNode(name, PUSH_OP.name, *operands, {}, layer, source, made, PUSH, device))
                self.there[copy].append((at, upto))
                at = upto


def local(tensor: Tensor, device: int) -> str:
    """Name of a tensor's copy on a device."""
    if tensor.role in ("weight", "constant") or (tensor.role == "input" and device == tensor.device):
        return tensor.name
    return on_device(tensor.name, device)


def on_device(name: str, device: int) -> str:
    """The name of an operator or a tensor on a device."""
    return f"{name}@{device}"


def _missing(needed: tuple[int, int], there: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of the interval `needed` that no interval of `there` covers."""
    gaps = []
    at, end = needed
    for b, e in sorted(there):
        if b >= end:
            break
        if b > at:
            gaps.append((at, b))
        at = max(at, e)
    if at < end:
        gaps.append((at, end))
    return gaps
