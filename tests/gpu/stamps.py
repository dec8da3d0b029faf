"""Part `timeline`: a step of the resident kernel with timestamps, explained and drawn as any recorded step is."""

from __future__ import annotations

import gzip
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from gpu.folder import Folder
from gpu.share import loaded, plan_for, steps_ms
from tilecompile.cost.step_time.spans import Spans, gaps_of, spans_of, tasks_of
from tilecompile.measure.timeline.perfetto import trace
from tilecompile.measure.timeline.summary import summary
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.folder.tables import Tables

Json = dict[str, Any]

STEPS = 12
"""Steps before the stamps are read, of which the last few are kept."""


def spans(manifest: Manifest, tables: Tables, stamps: np.ndarray) -> list[Spans]:
    """The steps that the rows of a kernel's stamps ([rows, instructions, 2], ns) hold whole, in their order.

    A step begins when the sink of the one before it is done, which publishes it; so the oldest row only gives that.
    """
    tasks = tasks_of(manifest, tables, manifest.workers)
    sink = int(tasks.instruction[tasks.sink])
    ends = stamps[:, sink, 1].astype(np.int64)
    order = [int(row) for row in np.argsort(ends) if ends[row]]
    found = []
    for before, row in itertools.pairwise(order):
        since = stamps[row].astype(np.int64) - ends[before]
        duration = float(ends[row] - ends[before])
        found.append(spans_of(tasks, since[:, 0].astype(float), since[:, 1].astype(float), duration))
    return found


def task_start_ns(step: Spans) -> float | None:
    """Median time from a task's end to the next one's beginning on the same worker where no event kept it waiting."""
    gaps = gaps_of(step)
    after = np.append(False, step.tasks.worker[1:] == step.tasks.worker[:-1])
    ready = after & (gaps.event == 0)
    return float(np.median((step.begin - step.wait_begin)[ready])) if ready.any() else None


def clock_ns(stamps: np.ndarray) -> int | None:
    """The clock's smallest step, as far as the stamps show."""
    steps = np.diff(np.unique(stamps[stamps > 0]))
    return int(steps.min()) if len(steps) else None


def recorded(folder: Folder, about: Json, context: int, out: Path | None, **options: Any) -> Json:
    """A recorded step of an engine around a context: its summary; the trace goes to a file."""
    rows = about["times_rows"]
    with loaded(folder, about, cubin=folder.path(about["times"]), times=rows, **options) as engine:
        backend: Any = engine.backend
        kernel = backend.launch(engine.tables, stops=())
        try:
            ms = steps_ms(engine, kernel, context, requests=1, steps=STEPS)
            time.sleep(0.01)  # the last stamp follows the message that the request has ended
            stamps = backend.times()[0]  # which go with the kernel
        finally:
            kernel.close()
        tables = engine.tables
        if options.get("share") is not None:
            from tilecompile.runtime.cuda.share import share_of

            tables = share_of(tables, options["share"], engine.manifest.data["operators"])
        found = spans(engine.manifest, tables, stamps)
        typical = min(found, key=lambda step: abs(step.duration - float(np.median([s.duration for s in found]))))
        about_step = {"engine": about["engine"], "context": context, "source": "measured"}
        if out is not None:
            with gzip.open(out, "wt", compresslevel=6) as file:
                json.dump(trace(typical, about_step), file)
        return {
            **about_step,
            "recorded_ms": ms,
            "step_ms": typical.duration / 1e6,
            "task_start_ns": task_start_ns(typical),
            "clock_ns": clock_ns(stamps),
            "trace": None if out is None else out.name,
            "timeline": {k: v for k, v in summary(typical).items() if k not in ("workers", "thread_work_us")},
        }


def run(folder: Folder, seconds: float, earlier: Json) -> Json:
    """glm5-mini, with a trace beside the results; then the shard of GLM-5, with one if there is time for it."""
    end = time.monotonic() + seconds
    out = Path(earlier["output"]) if earlier.get("output") else None
    mini = plan_for(folder, "mini")
    found = {"mini": recorded(folder, mini, mini["predicted"][0]["context"], out and out / "mini.trace.json.gz")}
    left_out = []
    if time.monotonic() < end:
        glm5 = plan_for(folder, "glm5")
        file = out / "glm5.trace.json.gz" if out and time.monotonic() < end - seconds / 2 else None
        found["glm5"] = recorded(folder, glm5, glm5["predicted"][0]["context"], file, share=0)
    else:
        left_out.append("glm5")
    return {
        "passed": not left_out,
        "steps": found,
        "left_out": left_out,
        "task_start_ns": found["mini"]["task_start_ns"],
        "summary": [(name, f"{one['step_ms']:.3f} ms", _shares(one["timeline"])) for name, one in found.items()],
    }


def _shares(about: Json) -> str:
    """What workers spend their time on."""
    return ", ".join(f"{name} {share:.0%}" for name, share in about["shares"].items())
