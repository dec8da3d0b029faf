"""graph.json: the fused operators of an engine, for those who execute its tables without its kernel.

Programs hold their operators in the order of `Instruction.op`, numbered through all programs. Views are written as
[tensor, shape, strides, offset, dtype]. In attributes tuples become lists and lists come back as tuples. Kernels
don't need the file, and the runtime only to tell which operators choose (`runtime/replay/choices.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tilecompile.errors import EngineError
from tilecompile.ir.node import OpNode, View
from tilecompile.ir.program import EngineGraph
from tilecompile.ops.base import REGISTRY
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.format import FORMAT_VERSION

NAME = "graph.json"


def write_graph(folder: Path, graph: EngineGraph) -> None:
    """Writes the graph.json of an engine folder."""
    programs = [
        {"name": name, "operators": [_operator(node) for node in nodes]} for name, nodes in graph.programs.items()
    ]
    data = {"format": FORMAT_VERSION, "programs": programs}
    (folder / NAME).write_text(json.dumps(data, separators=(",", ":")) + "\n")


def read_graph(manifest: Manifest) -> EngineGraph:
    """Reads the graph.json of an engine. EngineError in one line if there is none of this version."""
    path = manifest.file(NAME)
    if NAME not in manifest.data["files"]:
        raise EngineError(f"{path}: missing file; compile the model again")
    try:
        data = json.loads(path.read_bytes())
        if data["format"] != FORMAT_VERSION:
            raise EngineError(f"{path}: format version is {data['format']}, want {FORMAT_VERSION}")
        programs = {str(p["name"]): tuple(_read_operator(o) for o in p["operators"]) for p in data["programs"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EngineError(f"{path}: is not a readable graph: {type(error).__name__} {error}") from error
    return EngineGraph(programs)


def _operator(node: OpNode) -> dict[str, Any]:
    return {
        "name": node.name,
        "op": node.op,
        "layer": node.layer,
        **{side: [_view(v) for v in getattr(node, side)] for side in ("inputs", "weights", "outputs")},
        "attrs": {key: _plain(value, f"{node.name}.{key}") for key, value in node.attrs.items()},
    }


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
    layer = None if data["layer"] is None else int(data["layer"])
    return OpNode(str(data["name"]), data["op"], inputs, weights, outputs, attrs, layer)


def _read_view(data: list[Any]) -> View:
    tensor, shape, strides, offset, dtype = data
    return View(str(tensor), tuple(map(int, shape)), tuple(map(int, strides)), int(offset), str(dtype))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
