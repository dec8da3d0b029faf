"""The timeline of an engine on a machine that need not be present: one simulated step."""

from __future__ import annotations

from pathlib import Path

import tilecompile.ops  # noqa: F401  (registers the tile ops)
from tilecompile.cost.simulate.report import figures
from tilecompile.cost.simulate.step import simulate
from tilecompile.engine.graph_json import read_graph
from tilecompile.measure.bench import DEFAULT_CONTEXT
from tilecompile.measure.simulated.plans import plan_of
from tilecompile.measure.timeline.measure import Measured
from tilecompile.measure.timeline.rounds import MeasuredRound, check_drafts, in_order
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


def predict_round(
    path: Path, machine: str, drafts: int, context: int | None = None, threads: int | None = None
) -> MeasuredRound:
    """Simulates a round of speculation with that many drafts, all of them accepted; arguments and errors are those of
    `predict` and `check_drafts`."""
    plan, described = plan_of(path), load_machine(machine)
    check_drafts(plan.manifest, drafts)
    context = min(DEFAULT_CONTEXT, plan.manifest.max_seq_len) if context is None else context
    programs = [("verify", drafts + 1), ("extend", drafts + 1), *[("draft", 1)] * (drafts - 1)]
    made = [(name, tokens, plan.step(described, context, threads, name, tokens).spans) for name, tokens in programs]
    about = {
        "engine": str(path),
        "model": plan.manifest.data["model"]["name"],
        "context": context,
        "drafts": drafts,
        "machine": {"name": described.name},
        "source": "simulated",
    }
    return MeasuredRound(in_order(made), about)
