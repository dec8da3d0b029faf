"""The operator graph: what tracing gives and the passes up to tiling rewrite."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tilecompile.ops.base import OpNode
from tilecompile.ops.expr import to_text


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph: shape (static), dtype (`f32`, `bf16`, `i32`) and role.

    Roles: `activation` (written once a step by one operator), `cache` (kept over steps), `weight` (streamed from the
    tape), `constant` (small or gathered, an ordinary operand), `input` (written by the controller before each step).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str

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

    def replaced(self, nodes: Iterable[OpNode]) -> OpGraph:
        """The graph with other nodes, and without the activations that nobody writes any more."""
        nodes = list(nodes)
        written = {v.tensor for node in nodes for v in node.outputs}
        tensors = {n: t for n, t in self.tensors.items() if t.role != "activation" or n in written}
        return OpGraph(self.program, self.tokens, tensors, nodes, self.outputs)

    def __str__(self) -> str:
        lines = [f"program {self.program}: {self.tokens} token(s) a step, {len(self.nodes)} operators"]
        for node in self.nodes:
            outs = ", ".join(map(str, node.outputs)) or "(in place)"
            ins = ", ".join([*map(str, node.inputs), *(f"stream {w}" for w in node.weights)])
            attrs = {k: to_text(v) if k in ("epilogue", "expr") else v for k, v in node.attrs.items()}
            text = " ".join(f"{k}={v}" for k, v in attrs.items() if v is not None)
            lines.append(f"  {outs} = {node.op}({ins}){'  ' + text if text else ''}    # {node.name}")
        return "\n".join(lines) + "\n"
