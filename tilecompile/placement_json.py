"""placement.json: how the operators of an engine's programs lie on its devices, for those who look at it.

Kernels, the runtime and the proof don't need the file. For each program it lists the operators as they were before they
were divided, in their order: the axis (null for whole on each device), the parts as [device, begin, end], and for
partial sums the form of the reduction and the columns that each device adds, as parts too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.format import FORMAT_VERSION
from tilecompile.runtime.manifest import Manifest
from tilecompile.runtime.schema import mismatch

if TYPE_CHECKING:
    from tilecompile.plan import PlacedGraph

NAME = "placement.json"
SPLIT: dict[str, Any] = {
    "operator": str,
    "axis": (str, None),
    "parts": [[int]],
    "reduction": (str, None),
    "adds": [[int]],
}
SCHEMA: dict[str, Any] = {"format": int, "programs": [{"name": str, "operators": [SPLIT]}]}


def write_placement(folder: Path, placed: Sequence[PlacedGraph]) -> None:
    """Writes the placement.json of an engine folder."""
    programs = []
    for program in placed:
        operators = [
            {
                "operator": name,
                "axis": split.axis,
                "parts": [[p.device, p.begin, p.end] for p in split.parts],
                "reduction": split.reduction,
                "adds": [[p.device, p.begin, p.end] for p in split.adds],
            }
            for name, split in program.placement.splits.items()
        ]
        programs.append({"name": program.graph.program, "operators": operators})
    text = json.dumps({"format": FORMAT_VERSION, "programs": programs}, separators=(",", ":"))
    (folder / NAME).write_text(text + "\n")


def read_placement(manifest: Manifest, program: str) -> dict[str, dict[str, Any]]:
    """The operators of a program with their split, by name. EngineError in one line if there are none."""
    path = manifest.file(NAME)
    if NAME not in manifest.data["files"]:
        raise EngineError(f"{path}: missing file; compile the model again")
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(f"{path}: is not readable: {type(error).__name__} {error}") from error
    wrong = mismatch(data, SCHEMA, "")
    if wrong:
        raise EngineError(f"{path}: {wrong}")
    if data["format"] != FORMAT_VERSION:
        raise EngineError(f"{path}: format version is {data['format']}, want {FORMAT_VERSION}")
    found = [p["operators"] for p in data["programs"] if p["name"] == program]
    if not found:
        raise EngineError(f"{path}: has no program {program!r}, has {[p['name'] for p in data['programs']]}")
    return {str(entry["operator"]): entry for entry in found[0]}
