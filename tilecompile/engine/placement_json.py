"""placement.json: how the operators of an engine's programs are placed on its devices, for tools that show it.

Kernels, the runtime and the proof don't need the file. For each program it lists the operators as they were before they
were divided, in their order: the axis (null for whole on each device), the parts as [device, begin, end], and for
partial sums the form of the reduction and the columns that each device reduces, as parts too. What is divided by
context has `block`, the positions of a block, instead of begin and end, and attention has in `adds` the heads whose
results a device holds at the end. The file also has the table of `placement_table.py` at a context that fills the
caches.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.format import FORMAT_VERSION
from tilecompile.runtime.validate import mismatch

if TYPE_CHECKING:
    from tilecompile.ir.placement import PlacedGraph

NAME = "placement.json"
SPLIT: dict[str, Any] = {
    "operator": str,
    "axis": (str, None),
    "parts": [[int]],
    "reduction": (str, None),
    "adds": [[int]],
    "block": int,
}
ROW: dict[str, Any] = {
    **dict.fromkeys(("operator", "op", "axis"), str),
    **dict.fromkeys(("layers", "devices", "exchanges", "pushes", "pushed"), int),
    "read": [int],
}
TABLE: dict[str, Any] = {
    **dict.fromkeys(("context", "exchanges", "chain", "pushed"), int),
    "read": [int],
    "operators": [ROW],
}
SCHEMA: dict[str, Any] = {"format": int, "programs": [{"name": str, "operators": [SPLIT], "table": TABLE}]}


def write_placement(folder: Path, placed: Sequence[PlacedGraph]) -> None:
    """Writes the placement.json of an engine folder."""
    from tilecompile.cost.placement_table import placement_table

    programs = []
    for program in placed:
        operators = [
            {
                "operator": name,
                "axis": split.axis,
                "parts": [[p.device, p.begin, p.end] for p in split.parts],
                "reduction": split.reduction,
                "adds": [[p.device, p.begin, p.end] for p in split.adds],
                "block": split.block,
            }
            for name, split in program.placement.splits.items()
        ]
        table = placement_table(program).stated()
        programs.append({"name": program.graph.program, "operators": operators, "table": table})
    text = json.dumps({"format": FORMAT_VERSION, "programs": programs}, separators=(",", ":"))
    (folder / NAME).write_text(text + "\n")


def read_placement(manifest: Manifest, program: str) -> dict[str, dict[str, Any]]:
    """The operators of a program with their split, by name. EngineError in one line if there are none."""
    return {str(entry["operator"]): entry for entry in _program(manifest, program)["operators"]}


def read_table(manifest: Manifest, program: str) -> dict[str, Any]:
    """What `PlacementTable.stated` says of a program. EngineError in one line if there is none."""
    table: dict[str, Any] = _program(manifest, program)["table"]
    return table


def _program(manifest: Manifest, program: str) -> dict[str, Any]:
    path = manifest.file(NAME)
    if NAME not in manifest.data["files"]:
        raise EngineError(f"{path}: missing file; compile the model again")
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(f"{path}: is not readable: {type(error).__name__} {error}") from error
    wrong = mismatch(data, SCHEMA)
    if wrong:
        raise EngineError(f"{path}: {wrong}")
    if data["format"] != FORMAT_VERSION:
        raise EngineError(f"{path}: format version is {data['format']}, want {FORMAT_VERSION}")
    found: list[dict[str, Any]] = [p for p in data["programs"] if p["name"] == program]
    if not found:
        raise EngineError(f"{path}: has no program {program!r}, has {[p['name'] for p in data['programs']]}")
    return found[0]
