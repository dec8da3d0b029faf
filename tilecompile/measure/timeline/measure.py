"""The timeline of an engine on this machine: loads it, records it, takes a typical step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tilecompile.cost.step_time.spans import Spans, spans_of, tasks_of
from tilecompile.measure.bench import DEFAULT_CONTEXT
from tilecompile.measure.bench.report import machine
from tilecompile.measure.steps import window
from tilecompile.measure.timeline.record import Recording, check_recordable, check_steps, profiling_library, record
from tilecompile.runtime.cuda.options import CudaOptions
from tilecompile.runtime.folder.manifest import read_manifest
from tilecompile.runtime.load import checked_threads, load
from tilecompile.runtime.progress import Progress, silent


@dataclass(frozen=True)
class Measured:
    """A typical step, and what was measured of which engine, as JSON values."""

    spans: Spans
    about: dict[str, Any]


def measure(
    path: Path,
    context: int | None = None,
    threads: int | None = None,
    steps: int | None = None,
    progress: Progress = silent,
) -> Measured:
    """Records an engine's steps; arguments that are None are chosen. `progress(stage, done, total)` reports the stages.

    InputError for a context, steps or threads that don't fit the engine or without a C++ compiler, EngineError as
    `load` and `profiling_library` do.
    """
    manifest = read_manifest(path)
    context = min(DEFAULT_CONTEXT, manifest.max_seq_len) if context is None else context
    window(context, 1, manifest.max_seq_len)
    check_steps(steps, manifest.max_seq_len)
    checked_threads(manifest, CudaOptions(), threads)
    check_recordable(manifest)
    progress("load", 0, 1)
    with load(path, threads) as engine:
        progress("build", 0, 1)
        library = profiling_library(engine)
        found = record(engine, library, context, steps, partial(progress, "steps"))
        tasks = tasks_of(engine.manifest, engine.tables, engine.threads)
        index = found.typical()
        spans = spans_of(tasks, found.begins[index], found.ends[index], float(found.durations[index]))
        data = manifest.data
        about = {
            "engine": str(path),
            "model": data["model"]["name"],
            "weights": data["weights"]["dtype"],
            "cache": data["cache"],
            "context": context,
            "threads": engine.threads,
            "devices": data["devices"],
            "machine": machine(manifest),
            "source": "measured",
            "measured": _figures(found, index),
        }
    return Measured(spans, about)


def _figures(found: Recording, index: int) -> dict[str, Any]:
    """What was measured: medians over the requests, in microseconds, and what the recording costs.

    `step_us` is the time of a step on the engine's own kernel by the host's clock, `recorded_step_us` on the kernel
    that records, and `stamped_step_us` that by the kernel's clock; `recording_cost` is the share by which the second is
    longer than the first. `step_context` is the context of the step that was chosen out of `records`.
    """
    plain, profiled = float(np.median(found.measured)) / 1e3, float(np.median(found.profiled)) / 1e3
    return {
        "step_us": plain,
        "recorded_step_us": profiled,
        "stamped_step_us": float(np.median(found.stamped)) / 1e3,
        "recording_cost": profiled / plain - 1,
        "step_context": int(found.contexts[index]),
        "steps": found.steps * len(found.measured),
        "records": len(found.durations),
        "clock": found.clock,
    }
