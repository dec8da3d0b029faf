"""trace: turns a PyTorch step into an operator graph, by torch.export.

Tile ops arrive as custom ops and become nodes one to one. ATen between them is mapped by two small tables:
`VIEWS` (windows of their base tensor) and `ELEMENTWISE` (`map` nodes). Anything else is refused by name.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from tilecompile.errors import InputError
from tilecompile.ir.expr import Expr
from tilecompile.ir.graph import OpGraph, Tensor
from tilecompile.ir.node import OpNode, View
from tilecompile.models.spec import INPUTS, SAMPLING
from tilecompile.ops.base import REGISTRY, op_of
from tilecompile.ops.commit import COMMIT
from tilecompile.ops.dtypes import dtype_names, torch_dtype
from tilecompile.ops.map import MAP
from tilecompile.passes.views import VIEWS
from tilecompile.runtime.format import LOOP_INPUTS, LOOP_OUTPUTS, SAMPLING_INPUTS
from tilecompile.runtime.names import layer_of, without_layer

if TYPE_CHECKING:
    from tilecompile.models.spec import C, StepProgram, Steps, Storage

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


def trace_program(step: StepProgram[C], config: C, storage: Storage, steps: Steps) -> OpGraph:
    """The operator graph of a model's step program."""
    inputs = INPUTS | SAMPLING if step.samples else INPUTS
    with torch.device("meta"):
        module = step.module(config, storage, steps, step.tokens)
        args = [torch.zeros(i.sizes(config, step.tokens), dtype=torch_dtype(i.dtype)) for i in inputs.values()]
    return trace(module, tuple(args), tuple(inputs), LOOP_OUTPUTS, step.name, step.states)


def trace(
    module: torch.nn.Module,
    args: tuple[torch.Tensor, ...],
    input_names: tuple[str, ...],
    output_names: tuple[str, ...],
    program: str,
    states: Collection[str] = (),
) -> OpGraph:
    """Exports `module(*args)` (normally on the meta device) and returns its operator graph.

    `input_names` name the arguments; the graph's tensor names are those, the module's parameter and buffer names, and a
    name for each operator result. `states` are buffers of role `state`. Raises InputError for an operator that has no
    mapping, naming it, the module path that it stands in and the shapes of its operands.
    """
    exported = torch.export.export(module, args, strict=False)
    return _Tracer(exported, input_names, output_names, program, args[0].shape[0], states).run()


class _Tracer:
    """Walks the exported graph once; `values` holds the view, views or number behind each fx node."""

    def __init__(
        self,
        exported: torch.export.ExportedProgram,
        input_names: tuple[str, ...],
        output_names: tuple[str, ...],
        program: str,
        tokens: int,
        states: Collection[str],
    ) -> None:
        self.exported = exported
        self.states = states
        self.input_names = input_names
        self.output_names = output_names
        self.graph = OpGraph(program, tokens)
        self.values: dict[torch.fx.Node, Any] = {}
        self.names: set[str] = set()
        self.dtypes = dtype_names()

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
        if name is None and node.name not in spec.user_inputs:
            raise InputError(
                f"{node.name} is a tensor that the model makes while it runs; make it a buffer or a number"
            )
        if name is None:
            name = self.input_names[list(spec.user_inputs).index(node.name)]
            role = "input"
        else:
            # A constant until an operator streams it or writes to it: see set_roles.
            role = "state" if name in self.states else "constant"
        value = node.meta["val"]
        self.values[node] = self.tensor(name, tuple(value.shape), value.dtype, role, node)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, role: str, node: torch.fx.Node) -> View:
        if dtype not in self.dtypes:
            known = list(self.dtypes)
            raise InputError(f"{name} at {_module_path(node)}: dtype {dtype} has no mapping; there are {known}")
        self.graph.tensors[name] = Tensor(name, shape, self.dtypes[dtype], role, layer=layer_of(name))
        return View.of(name, shape, self.dtypes[dtype])

    def outputs(self, node: torch.fx.Node) -> None:
        # Buffers that were written in place come first among the outputs of some torch versions; ours come last.
        returned = [self.values[n] for n in node.args[0] if isinstance(n, torch.fx.Node)]  # type: ignore[union-attr]
        returned = returned[len(returned) - len(self.output_names) :]
        for name, view in zip(self.output_names, returned, strict=True):
            tensor = self.graph.tensors[view.tensor]
            if tensor.role != "activation" or view != View.of(tensor.name, tensor.shape, tensor.dtype):
                raise InputError(f"output {name} is {view} ({tensor.role}), want an operator's whole result")
        self.graph.outputs = tuple(view.tensor for view in returned)
        written = [self.graph.tensors[n] for n in (*LOOP_INPUTS, *SAMPLING_INPUTS) if n in self.graph.tensors]
        words = [View.of(t.name, t.shape, t.dtype) for t in written]
        self.add(OpNode(COMMIT.name, COMMIT.name, (*returned, *words), (), ()))

    def set_roles(self) -> None:
        for node in self.graph.nodes:
            tensors = self.graph.tensors
            for view in node.weights:
                tensors[view.tensor] = replace(tensors[view.tensor], role="weight")
            for view in node.inputs[: len(op_of(node).mutated)]:
                role = "state" if op_of(node).keeps_state else "cache"
                tensors[view.tensor] = replace(tensors[view.tensor], role=role)

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
                weights.append(self.weight(node, self.values[value]))
            else:
                inputs.append(self.input(node, self.values[value]))
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
        self.add(OpNode(name, op, tuple(inputs), tuple(weights), tuple(outputs), attrs))

    def weight(self, node: torch.fx.Node, view: View) -> View:
        """A weight is streamed by rows of its tensor, so it must be a whole parameter."""
        tensor = self.graph.tensors[view.tensor]
        if tensor.role != "constant" or view != View.of(tensor.name, tensor.shape, tensor.dtype):
            raise self.refusal(node, f"its weight is {view} ({tensor.role}), want a whole parameter")
        return view

    def input(self, node: torch.fx.Node, view: View) -> View:
        """Bodies load whole vectors of the last dimension, so its elements must be contiguous."""
        if not view.shape or (view.shape[-1] > 1 and view.strides[-1] != 1):
            raise self.refusal(node, f"operand {view} has no last dimension whose elements are contiguous")
        return view

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
            elif math.isfinite(value := float(arg)):  # type: ignore[arg-type]
                leaves.append(("const", value))
            else:
                raise self.refusal(node, f"no mapping with the number {value}")
        name = self.unique(f"{_module_path(node)}.{function}")
        out = self.tensor(f"%{name}", shape, node.meta["val"].dtype, "activation", node)
        self.values[node] = out
        self.add(OpNode(name, MAP.name, tuple(inputs), (), (out,), {"expr": (function, *leaves)}))

    def view(self, node: torch.fx.Node, aten: str) -> View | list[View]:
        base = self.values[node.args[0]]  # type: ignore[index]
        result = VIEWS[aten](base, *node.args[1:], **node.kwargs)
        if result is None:
            raise self.refusal(node, "not a view within the rows of its tensor")
        return result

    def unique(self, stem: str) -> str:
        name, count = stem, 1
        while name in self.names:
            count += 1
            name = f"{stem}.{count}"
        self.names.add(name)
        return name

    def add(self, node: OpNode) -> None:
        """Appends an operator, in the layer and the family that its name states."""
        layer = layer_of(node.name)
        self.graph.nodes.append(replace(node, layer=layer, family=without_layer(node.name, layer)))


def _module_path(node: torch.fx.Node) -> str:
    """Path of the module that an fx node stands in, as in `named_modules`; `model` for the outermost."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    return re.sub(r"^L\['self'\]\.?", "", path) or "step"
