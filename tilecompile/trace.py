"""trace: a PyTorch step to an operator graph, by torch.export.

Tile ops arrive as custom ops and become nodes one to one. ATen between them is mapped by the two small tables below:
views become windows of their base tensor, elementwise functions become `map` nodes. Anything else is refused by name.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import torch

from tilecompile.errors import InputError
from tilecompile.graph import OpGraph, Tensor
from tilecompile.ops.base import REGISTRY, OpNode, View
from tilecompile.ops.expr import Expr

DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.int32: "i32"}

ELEMENTWISE = {
    "add.Tensor": "add",
    "sub.Tensor": "sub",
    "mul.Tensor": "mul",
    "div.Tensor": "div",
    "maximum.default": "maximum",
    "minimum.default": "minimum",
    "neg.default": "neg",
    "relu.default": "relu",
    "sigmoid.default": "sigmoid",
    "silu.default": "silu",
    "gelu.default": "gelu_tanh",
    "tanh.default": "tanh",
    "exp.default": "exp",
    "sqrt.default": "sqrt",
}
"""ATen overload to elementwise function. gelu only in its tanh form; add and sub only with alpha = 1."""

NO_DATA = ("_assert_tensor_metadata.default",)


def trace(
    module: torch.nn.Module,
    args: tuple[torch.Tensor, ...],
    input_names: tuple[str, ...],
    output_names: tuple[str, ...],
    program: str,
) -> OpGraph:
    """Exports `module(*args)` (normally on the meta device) and returns its operator graph.

    `input_names` name the arguments; the graph's tensor names are those, the module's parameter and buffer names, and a
    name for each operator result. Raises InputError for an operator that has no mapping, naming it, the module path
    that it stands in and the shapes of its operands.
    """
    exported = torch.export.export(module, args, strict=False)
    return _Tracer(exported, input_names, output_names, program, args[0].shape[0]).run()


class _Tracer:
    """Walks the exported graph once; `values` holds the view, views or number behind each fx node."""

    def __init__(
        self,
        exported: torch.export.ExportedProgram,
        input_names: tuple[str, ...],
        output_names: tuple[str, ...],
        program: str,
        tokens: int,
    ) -> None:
        self.exported = exported
        self.input_names = input_names
        self.output_names = output_names
        self.graph = OpGraph(program, tokens)
        self.values: dict[torch.fx.Node, Any] = {}
        self.names: dict[str, int] = {}

    def run(self) -> OpGraph:
        for node in self.exported.graph.nodes:
            if node.op == "placeholder":
                self.placeholder(node)
            elif node.op == "call_function":
                self.call(node)
            elif node.op == "output":
                self.outputs(node)
        self.set_roles()
        return self.graph

    def placeholder(self, node: torch.fx.Node) -> None:
        spec = self.exported.graph_signature
        name = spec.inputs_to_parameters.get(node.name) or spec.inputs_to_buffers.get(node.name)
        if name is None:
            name = self.input_names[list(spec.user_inputs).index(node.name)]
            role = "input"
        else:
            role = "constant"  # until an operator streams it or writes to it: see set_roles
        value = node.meta["val"]
        self.values[node] = self.tensor(name, tuple(value.shape), value.dtype, role, node)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, role: str, node: torch.fx.Node) -> View:
        if dtype not in DTYPES:
            raise InputError(f"{name} at {_module_path(node)}: dtype {dtype} has no mapping; there are {list(DTYPES)}")
        self.graph.tensors[name] = Tensor(name, shape, DTYPES[dtype], role)
        return View.of(name, shape, DTYPES[dtype])

    def outputs(self, node: torch.fx.Node) -> None:
        # Buffers that were written in place come first among the outputs of some torch versions; ours come last.
        returned = [self.values[n] for n in node.args[0] if isinstance(n, torch.fx.Node)]  # type: ignore[union-attr]
        returned = returned[len(returned) - len(self.output_names) :]
        self.graph.outputs = tuple(view.tensor for view in returned)
        words = [View.of(t.name, t.shape, t.dtype) for n in ("ids", "position") for t in [self.graph.tensors[n]]]
        self.add(OpNode("commit", "commit", (*returned, *words), (), ()))

    def set_roles(self) -> None:
        for node in self.graph.nodes:
            tensors = self.graph.tensors
            for view in node.weights:
                tensors[view.tensor] = Tensor(view.tensor, tensors[view.tensor].shape, view.dtype, "weight")
            mutated = REGISTRY[node.op].mutated
            for view in node.inputs[: len(mutated)]:
                tensors[view.tensor] = Tensor(view.tensor, tensors[view.tensor].shape, view.dtype, "cache")

    def call(self, node: torch.fx.Node) -> None:
        if node.target is operator.getitem:
            self.values[node] = self.values[node.args[0]][node.args[1]]  # type: ignore[index]
            return
        target = node.target
        namespace, name = getattr(target, "namespace", ""), getattr(target, "__name__", str(target))
        if namespace == "tilecompile":
            self.tile_op(node, target)
        elif name in VIEWS and namespace == "aten":
            self.values[node] = self.view(node, name)
        elif name in ELEMENTWISE and namespace == "aten":
            self.elementwise(node, name)
        elif name not in NO_DATA:
            raise self.refusal(node, "no mapping")

    def refusal(self, node: torch.fx.Node, why: str) -> InputError:
        shapes = [list(self.values[n].shape) for n in node.all_input_nodes if isinstance(self.values.get(n), View)]
        return InputError(f"operator {node.target} at {_module_path(node)} with shapes {shapes}: {why}")

    def tile_op(self, node: torch.fx.Node, target: Any) -> None:
        schema = target._schema
        op = schema.name.split("::")[1]
        if op not in REGISTRY:
            raise self.refusal(node, "not a registered tile op")
        inputs, weights, attrs = [], [], {}
        bound = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | node.kwargs
        for argument in schema.arguments:
            value = bound.get(argument.name, argument.default_value)
            if not isinstance(value, torch.fx.Node):
                attrs[argument.name] = value
            elif argument.name in REGISTRY[op].weight_args:
                weights.append(self.values[value])
            else:
                inputs.append(self.values[value])
        value = node.meta.get("val")
        results = value if isinstance(value, (tuple, list)) else [] if value is None else [value]
        stem = weights[0].tensor.removesuffix(".weight") if weights else f"{_module_path(node)}.{op}"
        name = self.unique(stem)
        suffixes = [""] if len(results) == 1 else [f".{i}" for i in range(len(results))]
        outputs = [
            self.tensor(f"%{name}{suffix}", tuple(r.shape), r.dtype, "activation", node)
            for r, suffix in zip(results, suffixes, strict=True)
        ]
        self.values[node] = outputs if isinstance(value, (tuple, list)) else outputs[0] if outputs else None
        self.add(OpNode(name, op, tuple(inputs), tuple(weights), tuple(outputs), attrs, _layer(name)))

    def elementwise(self, node: torch.fx.Node, aten: str) -> None:
        function = ELEMENTWISE[aten]
        if function == "gelu_tanh" and node.kwargs.get("approximate") != "tanh":
            raise self.refusal(node, "no mapping; gelu has one with approximate='tanh'")
        if node.kwargs.get("alpha", 1) != 1:
            raise self.refusal(node, "no mapping with alpha")
        shape = tuple(node.meta["val"].shape)
        inputs: list[View] = []
        leaves: list[Expr] = []
        for arg in node.args:
            if isinstance(arg, torch.fx.Node):
                view = self.values[arg]
                if view.shape != shape or view.dtype != "f32":
                    raise self.refusal(node, f"no mapping with broadcasting or types other than f32, got {view}")
                if view not in inputs:
                    inputs.append(view)
                leaves.append(("in", inputs.index(view)))
            else:
                leaves.append(("const", float(arg)))  # type: ignore[arg-type]
        name = self.unique(f"{_module_path(node)}.{function}")
        out = self.tensor(f"%{name}", shape, node.meta["val"].dtype, "activation", node)
        self.values[node] = out
        self.add(OpNode(name, "map", tuple(inputs), (), (out,), {"expr": (function, *leaves)}, _layer(name)))

    def view(self, node: torch.fx.Node, aten: str) -> View | list[View]:
        base = self.values[node.args[0]]  # type: ignore[index]
        result = VIEWS[aten](base, *node.args[1:], **node.kwargs)
        if result is None:
            raise self.refusal(node, "not a view within the rows of its tensor")
        return result

    def unique(self, stem: str) -> str:
        count = self.names[stem] = self.names.get(stem, 0) + 1
        return stem if count == 1 else f"{stem}.{count}"

    def add(self, node: OpNode) -> None:
        self.graph.nodes.append(node)


def _reshape(view: View, shape: list[int]) -> View | None:
    size = 1
    for s in view.shape:
        size *= s
    known = 1
    for s in shape:
        known *= s if s != -1 else 1
    shape = [size // known if s == -1 else s for s in shape]
    strides = _reshaped_strides(view, shape)
    if strides is None or (view.shape and shape[0] != view.shape[0]):
        return None
    return View(view.tensor, tuple(shape), strides, view.offset, view.dtype)


def _reshaped_strides(view: View, shape: list[int]) -> tuple[int, ...] | None:
    # The meta device knows which reshapes are views.
    try:
        meta = torch.empty_strided(view.shape, view.strides, device="meta").view(shape)
    except RuntimeError:
        return None
    return tuple(meta.stride())


def _slice(view: View, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> View | None:
    dim %= len(view.shape)
    begin, stop, _ = slice(start, end, step).indices(view.shape[dim])
    if step != 1 or (dim == 0 and (begin, stop) != (0, view.shape[0])):
        return None
    shape = (*view.shape[:dim], stop - begin, *view.shape[dim + 1 :])
    return View(view.tensor, shape, view.strides, view.offset + begin * view.strides[dim], view.dtype)


def _split(view: View, sizes: int | list[int], dim: int = 0) -> list[View] | None:
    total = view.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, total - i) for i in range(0, total, sizes)]
    parts, begin = [], 0
    for size in sizes:
        part = _slice(view, dim, begin, begin + size)
        if part is None:
            return None
        parts.append(part)
        begin += size
    return parts


def _unsqueeze(view: View, dim: int) -> View | None:
    dim %= len(view.shape) + 1
    shape = (*view.shape[:dim], 1, *view.shape[dim:])
    strides = (*view.strides[:dim], 1, *view.strides[dim:])
    return None if dim == 0 else View(view.tensor, shape, strides, view.offset, view.dtype)


def _squeeze(view: View, dim: int) -> View | None:
    dim %= len(view.shape)
    if dim == 0:
        return None
    if view.shape[dim] != 1:
        return view
    shape, strides = view.shape[:dim] + view.shape[dim + 1 :], view.strides[:dim] + view.strides[dim + 1 :]
    return View(view.tensor, shape, strides, view.offset, view.dtype)


VIEWS: dict[str, Callable[..., View | list[View] | None]] = {
    "view.default": _reshape,
    "reshape.default": _reshape,
    "slice.Tensor": _slice,
    "split.Tensor": _split,
    "split_with_sizes.default": _split,
    "unsqueeze.default": _unsqueeze,
    "squeeze.dim": _squeeze,
    "alias.default": lambda view: view,
    "detach.default": lambda view: view,
    "contiguous.default": lambda view: view if View.of(view.tensor, view.shape, view.dtype) == view else None,
}
"""ATen overload to the window that it shows; None where it isn't one within the rows of its tensor."""


def _module_path(node: torch.fx.Node) -> str:
    """Path of the module that an fx node stands in, as in `named_modules`; `model` for the outermost."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    return re.sub(r"^L\['self'\]\.?", "", path) or "step"


def _layer(name: str) -> int | None:
    found = re.search(r"(?:^|\.)layers\.(\d+)(?:\.|$)", name)
    return int(found.group(1)) if found else None
