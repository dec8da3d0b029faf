"""The operators of an engine as graph.json states them, for readers without the compiler.

`engine/graph_json.py` writes the file and reads all of it. What is read here: what each operator is called, which tile
op it is, and where it comes from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.format import FORMAT_VERSION
from tilecompile.runtime.names import OP, PUSH

NAME = "graph.json"

UNREADABLE = (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError)
"""What comes of values of other types or lengths than a reader of the file expects."""


@dataclass(frozen=True)
class Operator:
    """An operator of a step program; the fields are those of `OpNode` (`ir/node.py`).

    `tensor` is the undivided tensor that a push copies a part of, "" for other operators; the layer of a push is
    that of this tensor.
    """

    program: str
    name: str
    op: str
    layer: int | None
    device: int
    origin: str
    role: str
    peer: int | None
    tensor: str

    @property
    def undivided(self) -> str:
        """The name of the operator of the undivided graph."""
        return self.origin or self.name

    @property
    def on_all_devices(self) -> str:
        """The name that it has in common with its counterparts on other devices."""
        if self.tensor:
            return self.tensor.removeprefix("%") + ".push"
        return self.name.removesuffix(f"@{self.device}")


def read_json(manifest: Manifest) -> Any:
    """The contents of an engine's graph.json. EngineError in one line if there is none of this version."""
    path = manifest.file(NAME)
    if NAME not in manifest.data["files"]:
        raise EngineError(f"{path}: missing file; compile the model again")
    try:
        data = json.loads(path.read_bytes())
        version = data["format"]
    except (OSError, *UNREADABLE) as error:
        raise EngineError(f"{path}: is not a readable graph: {type(error).__name__} {error}") from error
    if version != FORMAT_VERSION:
        raise EngineError(f"{path}: format version is {version}, want {FORMAT_VERSION}")
    return data


def read_operators(manifest: Manifest) -> list[Operator]:
    """The operators of all programs, in the order of `Instruction.op`. EngineError if they can't be read."""
    data = read_json(manifest)
    try:
        found = [operator for program in data["programs"] for operator in _operators(program)]
    except UNREADABLE as error:
        path = manifest.file(NAME)
        raise EngineError(f"{path}: is not a readable graph: {type(error).__name__} {error}") from error
    if [o.name for o in found] != manifest.data["operators"]:
        raise EngineError(f"{manifest.file(NAME)}: its operators are not those of {manifest.path}")
    return found


def _operators(program: dict[str, Any]) -> Iterator[Operator]:
    tensors = {str(tensor["name"]): tensor for tensor in program["tensors"]}
    for data in program["operators"]:
        pushed = tensors[data["outputs"][0][0]] if data.get("role") == PUSH else None
        yield _operator(str(program["name"]), data, pushed)


def _operator(program: str, data: dict[str, Any], pushed: dict[str, Any] | None) -> Operator:
    layer, peer = (data if pushed is None else pushed).get("layer"), data.get("peer")
    return Operator(
        program,
        str(data["name"]),
        str(data["op"]),
        None if layer is None else int(layer),
        int(data.get("device", 0)),
        str(data.get("origin", "")),
        str(data.get("role", OP)),
        None if peer is None else int(peer),
        "" if pushed is None else str(pushed.get("origin") or pushed["name"]),
    )
