"""Summaries of steps for the page: what `tilecompile timeline --json` and `tilecompile simulate --json` print.

The two state different figures of a step; those that both state are shown side by side.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilecompile.runtime.errors import InputError
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.validate import MapOf, mismatch

COMMON: dict[str, Any] = {"source": str, "context": int, "threads": int, "devices": int, "tasks": int}
TIMELINE: dict[str, Any] = {
    "machine": dict,
    "step_us": float,
    "shares": MapOf(float),
    "ops": [{"op": str, "path_tasks": int, "path_us": float}],
    "path": {"tasks": int},
}
SIMULATED: dict[str, Any] = {
    "step_ms": float,
    "roof_fraction": float,
    "causes": MapOf(float),
    "path": [{"op": str, "tasks": int, "work_ms": float}],
}
SOURCES = ("measured", "simulated")
NAMES = {
    "work": "at work",
    "event": "waiting for an event",
    "thread": "waiting for its thread",
    "loop": "waiting for the loop",
    "end": "waiting for the step's end",
}
"""Shares of a timeline, in words."""


@dataclass(frozen=True)
class Times:
    """A step's summary: `source` is measured or simulated; times in milliseconds.

    `shares` divides the step by what workers (a timeline) or threads (a simulation) spend it on; they add up to 1.
    `path_ms` is the time of the tasks on the critical path, by op.
    """

    file: str
    source: str
    machine: str
    context: int
    threads: int
    tasks: int
    step_ms: float
    roof: float | None
    shares: dict[str, float]
    path_tasks: int
    path_ms: dict[str, float]


def read_times(path: Path, manifest: Manifest) -> Times:
    """Reads a summary. InputError in one line if it is none, or not of this engine's program on its devices."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"--timeline {path}: can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"--timeline {path}: is not JSON: {' '.join(str(error).split())}") from error
    wrong = mismatch(data, COMMON)
    timeline = isinstance(data, dict) and "step_us" in data
    wrong = wrong or mismatch(data, TIMELINE if timeline else SIMULATED)
    if not wrong and timeline and data["source"] == "simulated":
        wrong = mismatch(data, {"simulated": {"roof_fraction": float}})
    if wrong:
        raise InputError(
            f"--timeline {path}: {wrong}; want what tilecompile timeline --json or tilecompile simulate --json prints"
        )
    if data["source"] not in SOURCES:
        raise InputError(f"--timeline {path}: source is {data['source']!r}, want {' or '.join(SOURCES)}")
    program = manifest.program()
    for key, own in (("devices", manifest.devices), ("tasks", program["tasks"])):
        if data[key] != own:
            raise InputError(f"--timeline {path}: is of another engine: {key} is {data[key]}, this one's is {own}")
    if not data["step_us" if timeline else "step_ms"] > 0:
        raise InputError(f"--timeline {path}: the step takes no time")
    return _timeline(path, data) if timeline else _simulated(path, data)


def _timeline(path: Path, data: dict[str, Any]) -> Times:
    machine = data["machine"]
    return Times(
        file=path.name,
        source=data["source"],
        machine=str(machine.get("cpu", machine.get("name", ""))),
        **{key: data[key] for key in ("context", "threads", "tasks")},
        step_ms=data["step_us"] / 1e3,
        roof=data["simulated"]["roof_fraction"] if data["source"] == "simulated" else None,
        shares={NAMES.get(name, name): share for name, share in data["shares"].items()},
        path_tasks=data["path"]["tasks"],
        path_ms={op["op"]: op["path_us"] / 1e3 for op in data["ops"] if op["path_tasks"]},
    )


def _simulated(path: Path, data: dict[str, Any]) -> Times:
    return Times(
        file=path.name,
        source=data["source"],
        machine=str(data.get("machine", "")),
        **{key: data[key] for key in ("context", "threads", "tasks")},
        step_ms=data["step_ms"],
        roof=data["roof_fraction"],
        shares={name: ms / data["step_ms"] for name, ms in data["causes"].items()},
        path_tasks=sum(row["tasks"] for row in data["path"]),
        path_ms={row["op"]: row["work_ms"] for row in data["path"]},
    )
