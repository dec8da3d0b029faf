"""The timeline of an engine on a machine that need not be present: one simulated step."""

from __future__ import annotations

from pathlib import Path

import tilecompile.ops  # noqa: F401  (registers the tile ops)
from tilecompile.cost.simulate.report import figures
from tilecompile.cost.simulate.step import simulate
from tilecompile.engine.graph_json import read_graph
from tilecompile.measure.bench import DEFAULT_CONTEXT
from tilecompile.measure.timeline.measure import Measured
from tilecompile.runtime.folder.manifest import read_manifest
from tilecompile.runtime.folder.tables import load_tables
from tilecompile.schedules.machine import load_machine


def predict(path: Path, machine: str, context: int | None = None, threads: int | None = None) -> Measured:
    """Simulates a step of an engine; `machine` is a name or a file, arguments that are None are chosen.

    InputError for a machine without costs and what doesn't fit it or the engine, EngineError as `read_manifest` does.
    """
    manifest, described = read_manifest(path), load_machine(machine)
    context = min(DEFAULT_CONTEXT, manifest.max_seq_len) if context is None else context
    nodes = read_graph(manifest).nodes
    found = simulate(manifest, load_tables(manifest), nodes, described, context, threads)
    data = manifest.data
    step = figures(found, manifest, described, context)
    about = {
        "engine": str(path),
        "model": data["model"]["name"],
        "weights": data["weights"]["dtype"],
        "cache": data["cache"],
        "context": context,
        "threads": step["threads"],
        "devices": data["devices"],
        "machine": {"name": described.name},
        "source": "simulated",
        "simulated": {key: step[key] for key in ("calibrated", "roof_fraction", "causes")},
    }
    return Measured(found.spans, about)
