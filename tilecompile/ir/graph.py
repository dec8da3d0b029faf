"""The operator graph, which tracing makes and the passes up to tiling rewrite."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tilecompile.ir.expr import to_text
from tilecompile.ir.node import OpNode, View

TENSOR_ROLES = ("activation", "cache", "state", "weight", "constant", "input")


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph: shape (static), dtype (`f32`, `bf16`, `i32`) and role.

    Roles: `activation` (written once a step by one operator), `cache` (kept over steps),
    `state` (kept over steps, and handed from one step program to another), `weight` (streamed from the
    tape), `constant` (small or gathered, an ordinary operand), `input` (written by the controller before each step).
    `device` is where it is stored, but for weights and constants, which are stored wherever an operator reads them.
    `origin` is the tensor of the undivided graph that this is a device's copy or shard of, "" for that tensor itself;
    `shard` says which blocks of the context a shard holds, as (index, count, block) of `ops/context.py`. `layer` is the
    layer of the model that it belongs to, None outside the layers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str
    device: int = 0
    origin: str = ""
    shard: tuple[int, int, int] | None = None
    layer: int | None = None

    @property
    def undivided(self) -> str:
        """The name of the tensor of the undivided graph."""
        return self.origin or self.name

    @property
    def rows(self) -> int:
        """Rows of the matrix that regions refer to: dimension 0."""
        return self.shape[0]

    @property
    def cols(self) -> int:
        """Columns of that matrix: all other dimensions, flattened."""
        cols = 1
        for size in self.shape[1:]:
            cols *= size
        return cols


@dataclass
class OpGraph:
    """Operators of one step program in an order that respects their dependencies."""

    program: str
    tokens: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    nodes: list[OpNode] = field(default_factory=list)
    outputs: tuple[str, ...] = ()

    def consumers(self) -> dict[str, list[OpNode]]:
        """Nodes that read each tensor, in order; weights included."""
        readers: dict[str, list[OpNode]] = {name: [] for name in self.tensors}
        for node in self.nodes:
            for name in dict.fromkeys(v.tensor for v in (*node.inputs, *node.weights)):
                readers[name].append(node)
        return readers

    def producer(self) -> dict[str, OpNode]:
        """The node that writes each activation."""
        return {v.tensor: node for node in self.nodes for v in node.outputs}

    def caches(self, node: OpNode) -> list[int]:
        """The inputs of a node, by number, that are caches."""
        return [i for i, view in enumerate(node.inputs) if self.tensors[view.tensor].role == "cache"]

    def replaced(self, nodes: Iterable[OpNode]) -> OpGraph:
        """The graph with `nodes` as its nodes, without the activations that none of them writes."""
        nodes = list(nodes)
        written = {v.tensor for node in nodes for v in node.outputs}
        tensors = {n: t for n, t in self.tensors.items() if t.role != "activation" or n in written}
        return OpGraph(self.program, self.tokens, tensors, nodes, self.outputs)

    def __str__(self) -> str:
        lines = [
            f"program {self.program}: {self.tokens} token(s) a step, {len(self.nodes)} operators",
            "  %name: result of an operator; streams: weights read from the tape; names are relative to the layer",
        ]
        layer: int | None = None
        for node in self.nodes:
            if node.layer != layer:
                layer = node.layer
                lines.append(f"layer {layer}" if layer is not None else "outside the layers")
            lines.append("  " + self._line(node))
        return "\n".join(lines) + "\n"

    def _line(self, node: OpNode) -> str:
        """One operator as `result = op(operands) streams weights attributes`."""
        prefix = f"model.layers.{node.layer}."

        def short(name: str) -> str:
            sign = "%" if name.startswith("%") else ""
            return sign + name.removeprefix(sign).removeprefix(prefix)

        def text(view: View, shape: bool) -> str:
            tensor = self.tensors[view.tensor]
            whole = View.of(view.tensor, tensor.shape, tensor.dtype)
            dims = f"{view.dtype}[{','.join(map(str, view.shape))}]"
            if (view.strides, view.offset) == (View.of("", view.shape, "").strides, 0):
                return f"{short(view.tensor)} {dims}" if shape or view.shape != whole.shape else short(view.tensor)
            return f"{short(view.tensor)} {dims} from {view.offset} by {','.join(map(str, view.strides))}"

        results = ", ".join(text(v, True) for v in node.outputs)
        line = f"{results} = " if results else ""
        line += f"{node.op}({', '.join(text(v, False) for v in node.inputs)})"
        if node.weights:
            line += f" streams {', '.join(text(w, True) for w in node.weights)}"
        attrs = {k: to_text(v) if k in ("epilogue", "expr") else v for k, v in node.attrs.items() if v is not None}
        return line + "".join(f"  {k}={v}" for k, v in attrs.items())


def pushes(graph: OpGraph, node: OpNode) -> tuple[View, ...]:
    """The outputs of an operator that are stored on other devices."""
    return tuple(view for view in node.outputs if graph.tensors[view.tensor].device != node.device)
