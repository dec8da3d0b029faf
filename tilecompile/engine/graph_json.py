"""graph.json: the fused operators and tensors of an engine, for executing its tables without its kernel.

Programs hold their operators in the order of `Instruction.op`, numbered through all programs, and their tensors. Views
are written as [tensor, shape, strides, offset, dtype]. In attributes tuples become lists and lists come back as tuples;
fields at their defaults (`OpNode`, `Tensor`) are left out. Kernels don't need the file. The runtime and the pictures
read it without the compiler (`runtime/folder/operators.py`), so `chooses` of `TileOp` is written too.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from tilecompile.errors import EngineError
from tilecompile.ir.graph import TENSOR_ROLES, OpGraph, Tensor
from tilecompile.ir.node import OpNode, View
from tilecompile.ir.program import EngineGraph
from tilecompile.ops.base import REGISTRY, op_of
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.folder.operators import NAME, UNREADABLE, read_json
from tilecompile.runtime.format import DTYPES, FORMAT_VERSION
from tilecompile.runtime.names import ROLES
from tilecompile.runtime.weight_formats import FORMATS

OF_NODE = {"layer": int, "device": int, "origin": str, "role": str, "peer": int}
OF_TENSOR = {"device": int, "origin": str, "shard": tuple, "layer": int}
"""Fields with defaults, as JSON has them."""


def write_graph(folder: Path, graph: EngineGraph) -> None:
    """Writes the graph.json of an engine folder."""
    programs = [
        {
            "name": name,
            "tokens": program.tokens,
            "outputs": list(program.outputs),
            "tensors": [_tensor(tensor) for tensor in program.tensors.values()],
            "operators": [_operator(node) for node in program.nodes],
        }
        for name, program in graph.programs.items()
    ]
    data = {"format": FORMAT_VERSION, "programs": programs}
    (folder / NAME).write_text(json.dumps(data, separators=(",", ":")) + "\n")


def read_graph(manifest: Manifest) -> EngineGraph:
    """Reads the graph.json of an engine. EngineError in one line if there is none of this version."""
    data = read_json(manifest)
    try:
        programs = {str(p["name"]): _read_program(p) for p in data["programs"]}
        for graph in programs.values():
            _check(graph, manifest.devices)
        return EngineGraph(programs)
    except UNREADABLE as error:
        path = manifest.file(NAME)
        raise EngineError(f"{path}: is not a readable graph: {type(error).__name__} {error}") from error


def _read_program(data: dict[str, Any]) -> OpGraph:
    tensors = {tensor.name: tensor for tensor in map(_read_tensor, data["tensors"])}
    nodes, outputs = [_read_operator(o) for o in data["operators"]], tuple(map(str, data["outputs"]))
    return OpGraph(str(data["name"]), int(data["tokens"]), tensors, nodes, outputs)


def _check(graph: OpGraph, devices: int) -> None:
    """ValueError for a structure that no engine of so many devices has."""
    for tensor in graph.tensors.values():
        if tensor.dtype not in (*DTYPES, *FORMATS) or tensor.role not in TENSOR_ROLES:
            raise ValueError(f"tensor {tensor.name} is {tensor.dtype} {tensor.role}, want a type and a role that exist")
        if not 0 <= tensor.device < devices:
            raise ValueError(f"tensor {tensor.name} is on device {tensor.device}, want 0 to {devices - 1}")
        if tensor.shard is not None and [type(x) for x in tensor.shard] != [int] * 3:
            raise ValueError(f"the shard of tensor {tensor.name} is {tensor.shard}, want index, count and block")
    for node in graph.nodes:
        if node.role not in ROLES:
            raise ValueError(f"the role of operator {node.name} is {node.role!r}, want one of {', '.join(ROLES)}")
        for device in (node.device, *(() if node.peer is None else (node.peer,))):
            if not 0 <= device < devices:
                raise ValueError(f"operator {node.name} names device {device}, want 0 to {devices - 1}")
        for view in (*node.inputs, *node.weights, *node.outputs):
            if view.tensor not in graph.tensors:
                raise ValueError(f"operator {node.name} names tensor {view.tensor}, which isn't among the tensors")


def _operator(node: OpNode) -> dict[str, Any]:
    chooses = op_of(node).chooses
    return {
        "name": node.name,
        "op": node.op,
        **_stated(node, OF_NODE),
        **({"chooses": chooses} if chooses else {}),
        **{side: [_view(v) for v in getattr(node, side)] for side in ("inputs", "weights", "outputs")},
        "attrs": {key: _plain(value, f"{node.name}.{key}") for key, value in node.attrs.items()},
    }


def _tensor(tensor: Tensor) -> dict[str, Any]:
    about = {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype, "role": tensor.role}
    return about | _stated(tensor, OF_TENSOR)


def _stated(value: OpNode | Tensor, names: dict[str, Any]) -> dict[str, Any]:
    """The fields of a value that aren't at their defaults."""
    default = {field.name: field.default for field in fields(value) if field.default is not MISSING}
    found = {name: getattr(value, name) for name in names if getattr(value, name) != default[name]}
    return {name: list(x) if isinstance(x, tuple) else x for name, x in found.items()}


def _read_stated(data: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    return {name: kind(data[name]) for name, kind in names.items() if name in data}


def _view(view: View) -> list[Any]:
    return [view.tensor, list(view.shape), list(view.strides), view.offset, view.dtype]


def _plain(value: Any, what: str) -> Any:
    """An attribute as JSON has it. A list would come back as a tuple, so there must be none."""
    if isinstance(value, tuple):
        return [_plain(item, what) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"attribute {what} is a {type(value).__name__}, want numbers, strings and tuples")


def _read_operator(data: dict[str, Any]) -> OpNode:
    if data["op"] not in REGISTRY:
        raise ValueError(f"operator {data['name']} is of the unknown op {data['op']}")
    inputs, weights, outputs = (tuple(map(_read_view, data[side])) for side in ("inputs", "weights", "outputs"))
    attrs = {str(key): _tuples(value) for key, value in data["attrs"].items()}
    return OpNode(str(data["name"]), data["op"], inputs, weights, outputs, attrs, **_read_stated(data, OF_NODE))


def _read_tensor(data: dict[str, Any]) -> Tensor:
    shape = tuple(map(int, data["shape"]))
    return Tensor(str(data["name"]), shape, str(data["dtype"]), str(data["role"]), **_read_stated(data, OF_TENSOR))


def _read_view(data: list[Any]) -> View:
    tensor, shape, strides, offset, dtype = data
    return View(str(tensor), tuple(map(int, shape)), tuple(map(int, strides)), int(offset), str(dtype))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
