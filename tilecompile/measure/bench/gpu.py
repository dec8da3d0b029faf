"""An engine's steps on GPUs, against the memory bandwidth that its machine's description states."""

from __future__ import annotations

from statistics import median
from typing import Any

from tilecompile.cost.traffic import stated_reads
from tilecompile.measure.bench.report import spread
from tilecompile.measure.bench.rounds import steps_around
from tilecompile.measure.roof import StatedRoof
from tilecompile.measure.steps import time_steps
from tilecompile.runtime.engine import Engine
from tilecompile.runtime.kernel import Resident
from tilecompile.runtime.progress import Progress


def gpu_figures(
    engine: Engine,
    kernel: Resident,
    context: int,
    count: int,
    roof: StatedRoof,
    progress: Progress,
) -> dict[str, Any]:
    """The keys of `report.figures`, from `count` rounds of steps; the bandwidth is the one that is stated."""
    steps = steps_around(engine, kernel, context)
    time_steps(engine, kernel, steps.contexts)
    ms = []
    for i in range(count):
        progress("rounds", i, count)
        ms.append(steps.ms(engine, kernel))
    step_bytes = stated_reads(engine.manifest).mean(steps.contexts)
    fractions = [step_bytes / 1e6 / m / roof.gbs for m in ms]
    return {
        "ms_per_step": median(ms),
        "spread": spread(ms),
        "tokens_per_second": 1e3 / median(ms),
        "bytes_per_step": step_bytes,
        "read_bandwidth_gbs": roof.gbs,
        "read_bandwidth_spread": spread([roof.gbs]),
        "read_kernel": roof.name,
        "roof_fraction": median(fractions),
        "roof_fraction_spread": spread(fractions),
        "contexts": [steps.contexts.start, steps.contexts.stop - 1],
        "steps_per_round": len(steps.contexts) * steps.requests,
        "rounds": [
            {"ms_per_step": m, "read_bandwidth_gbs": roof.gbs, "roof_fraction": f}
            for m, f in zip(ms, fractions, strict=True)
        ],
        "rounds_left_out": 0,
        "working_set_bytes": None,
        "read_kernels": [],
        "ablation": [],
    }
