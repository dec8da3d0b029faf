"""Parts `share` and `mini`: steps of engines with random weights: one device's shard of GLM-5, and glm5-mini."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from gpu.folder import Folder
from tilecompile.measure.steps import time_steps, window
from tilecompile.runtime.cuda.options import CudaOptions
from tilecompile.runtime.engine import Engine
from tilecompile.runtime.load import load_with

Json = dict[str, Any]

STEPS = 48
"""Steps of a request that is timed."""
REQUESTS = 3
LATENCIES_NS = (0, 2000, 4000)
LARGE = 100_000_000_000
"""Bytes of memory from which on a GPU is one that holds all layers of its shard."""


def gpu_bytes() -> int:
    """Memory of the first GPU."""
    from gpu.card import Card

    with Card() as card:
        return card.free_bytes()


def plan_for(folder: Folder, model: str) -> Json:
    """The engine of "glm5" or "mini" that was prepared for a GPU of this size."""
    return dict(folder.index[model]["h200" if gpu_bytes() > LARGE else "h100"])


@contextmanager
def loaded(folder: Folder, about: Json, **options: Any) -> Iterator[Engine]:
    """An engine with weights drawn on the GPU, whose kernel has been closed, so that others can be launched."""
    with load_with(folder.path(about["engine"]), CudaOptions(random_seed=1, **options), stall_seconds=2.0) as engine:
        engine._requests.kernel.close()
        yield engine


def steps_ms(engine: Engine, kernel: Any, context: int, requests: int = REQUESTS, steps: int = STEPS) -> float:
    """Median over requests of the mean milliseconds of a step around a context."""
    contexts = window(context, steps, engine.manifest.max_seq_len)
    found = [time_steps(engine, kernel, contexts).ms_per_step for _ in range(1 + requests)]
    return float(np.median(found[1:]))


def roof(predicted: Json, ms: float, bandwidth: float | None) -> Json:
    """A measured step beside the prediction, and what part of the roof it is: bytes that must be read, over time."""
    out = {"context": predicted["context"], "ms": ms, "predicted_ms": predicted["step_ms"]}
    out["over_predicted"] = ms / predicted["step_ms"]
    if bandwidth:
        out["roof_fraction"] = predicted["bytes"] / bandwidth / (1e-3 * ms)
        out["read_fraction"] = predicted["bytes_read"] / bandwidth / (1e-3 * ms)
    return out


def bandwidth_of(earlier: Json) -> float | None:
    """The best read bandwidth that was measured, if it was."""
    found = earlier.get("bandwidth", {}).get("read_bandwidth")
    return float(found) if found else None


def measured(
    folder: Folder, about: Json, seconds: float, earlier: Json, latencies: tuple[int, ...], **options: Any
) -> Json:
    """Steps at all contexts and latencies that there is time for."""
    end = time.monotonic() + seconds
    rows: list[Json] = []
    left_out: list[str] = []
    with loaded(folder, about, **options) as engine:
        backend: Any = engine.backend
        load_seconds = seconds - (end - time.monotonic())
        for latency in latencies:
            backend.options = replace(backend.options, latency_ns=latency)
            if time.monotonic() > end:
                left_out.append(f"{latency} ns")
                continue
            kernel = backend.launch(engine.tables, stops=())
            try:
                for predicted in about["predicted"]:
                    if time.monotonic() > end:
                        left_out.append(f"{latency} ns at {predicted['context']}")
                        continue
                    ms = steps_ms(engine, kernel, predicted["context"])
                    rows.append({"latency_ns": latency, **roof(predicted, ms, bandwidth_of(earlier))})
            finally:
                kernel.close()
    return {"engine": about["engine"], "load_seconds": load_seconds, "steps": rows, "left_out": left_out}


def words(row: Json) -> tuple[str, str, str]:
    """A row of the report."""
    fraction = f", {row['roof_fraction']:.0%} of the roof" if "roof_fraction" in row else ""
    late = f", {row['latency_ns']} ns injected" if row["latency_ns"] else ""
    return (
        f"context {row['context']}{late}",
        f"{row['ms']:.3f} ms{fraction}",
        f"simulated {row['predicted_ms']:.3f} ms, {row['over_predicted']:.2f} ×",
    )


def run(folder: Folder, seconds: float, earlier: Json) -> Json:
    """One device's shard of GLM-5 in fp8, with exchanges looped back."""
    about = plan_for(folder, "glm5")
    found = measured(folder, about, seconds, earlier, LATENCIES_NS, share=0)
    first = next((row for row in found["steps"] if row["latency_ns"] == 0), None)
    near = all(0.8 <= row["over_predicted"] <= 1.2 for row in found["steps"] if row["latency_ns"] == 0)
    return {
        **found,
        "layers": about["layers"],
        "of_layers": about["of_layers"],
        "passed": first is not None and first.get("roof_fraction", 0) >= 0.6 and near and not found["left_out"],
        "summary": [
            ("GLM-5 fp8, one of 8", f"{about['layers']} of {about['of_layers']} layers", ""),
            *map(words, found["steps"]),
        ],
    }


def run_mini(folder: Folder, seconds: float, earlier: Json) -> Json:
    """glm5-mini in bf16 on the GPU alone."""
    found = measured(folder, plan_for(folder, "mini"), seconds, earlier, (0,))
    return {**found, "passed": not found["left_out"], "summary": [*map(words, found["steps"])]}
