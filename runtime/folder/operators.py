"""The operators of an engine as graph.json states them, for readers without the compiler.

`engine/graph_json.py` writes the file and reads all of it. What is read here: what each operator is called, which tile
op it is, and where it comes from.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.format import FORMAT_VERSION
from tilecompile.runtime.names import OP, PUSH

NAME = "graph.json"

UNREADABLE = (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError)
"""What comes of values of other types or lengths than a reader of the file expects."""


class Shared(NamedTuple):
    """What an operator has in common with its counterparts on other devices, and with no other operator.

    `of` is the undivided operator that it does a part of, of a push the undivided tensor that it copies a part of.
    `number` counts the operators of a device that agree in the other fields; it is 0 for all pushes of a tensor.
    """

    program: str
    role: str
    of: str
    number: int


@dataclass(frozen=True)
class Operator:
    """An operator of a step program; the fields are those of `OpNode` (`ir/node.py`).

    `tensor` is the undivided tensor that a push copies a part of, "" for other operators; the layer of a push is
    that of this tensor. `number` is that of `Shared`.
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
    number: int

    @property
    def undivided(self) -> str:
        """The name of the operator of the undivided graph."""
        return self.origin or self.name

    @property
    def shared(self) -> Shared:
        """What it has in common with its counterparts on other devices."""
        return Shared(self.program, self.role, self.tensor or self.undivided, self.number)


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
    numbers = Counter[tuple[int, str, str]]()
    for data in program["operators"]:
        role, device = str(data.get("role", OP)), int(data.get("device", 0))
        pushed = tensors[data["outputs"][0][0]] if role == PUSH else None
        layer, peer = (data if pushed is None else pushed).get("layer"), data.get("peer")
        name, origin = str(data["name"]), str(data.get("origin", ""))
        alike = (device, role, origin or name)
        yield Operator(
            str(program["name"]),
            name,
            str(data["op"]),
            None if layer is None else int(layer),
            device,
            origin,
            role,
            None if peer is None else int(peer),
            "" if pushed is None else str(pushed.get("origin") or pushed["name"]),
            0 if pushed is not None else numbers[alike],
        )
        numbers[alike] += 1
