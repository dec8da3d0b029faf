"""Part `programs`: what a step of each step program takes, of glm5-mini with random weights.

Programs follow each other within a request, so none is timed alone. Requests with different numbers of drafts, long
prompts and none, take known numbers of steps of each program; the times of a step are those that explain the requests'
times best (least squares).
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu.folder import Folder
from gpu.share import loaded, plan_for
from tilecompile.runtime.cpu.launch import stalled
from tilecompile.runtime.engine import Engine
from tilecompile.runtime.run import Ask, Run, Stats

Json = dict[str, Any]

TOKENS = 16
"""Tokens that a request generates, and steps that a prompt takes."""
REPEATS = 5


def asks(engine: Engine, context: int) -> list[Ask]:
    """Requests around a context: tokens at each number of drafts, prompts without and with drafts."""
    manifest = engine.manifest
    table = manifest.programs
    most = int(table.rows["tokens"][list(table.launched)].max())
    count = min(TOKENS, (manifest.max_seq_len - 2) // (2 * most)) * most
    begin = max(0, min(context, manifest.max_seq_len - count - 1) - count)
    ids = np.full(begin + count, 1, np.int32)
    single = ids[: begin + 1]
    tokens = [Ask(single, begin, min(TOKENS, count), drafts=drafts) for drafts in range(table.drafts + 1)]
    prompts = [Ask(ids, begin, 1, drafts=drafts) for drafts in {0, table.drafts}]
    return [*tokens, *prompts]


def timed(engine: Engine, kernel: Any, ask: Ask) -> Stats:
    """One request, to its end."""
    with Run(kernel, lambda k: stalled(engine.manifest, engine.tables, k), ask) as run:
        run.wait(ask.max_new)
    return run.stats()


def explained(steps: npt.NDArray[np.float64], ms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The ms of a step of each program, by [requests, programs] counts of steps and the requests' ms.

    ValueError if the counts don't tell the programs apart.
    """
    found, _, rank, _ = np.linalg.lstsq(steps, ms, rcond=None)
    if rank < steps.shape[1]:
        raise ValueError(f"requests tell {rank} of {steps.shape[1]} programs apart")
    return np.asarray(found, np.float64)


def measure(engine: Engine, kernel: Any, context: int, end: float) -> Json:
    """The ms of a step of each program around a context: the median of REPEATS, or of those begun before `end`."""
    names = [str(program["name"]) for program in engine.manifest.data["programs"]]
    used = list(engine.manifest.programs.launched)
    timed(engine, kernel, asks(engine, context)[0])
    each: list[npt.NDArray[np.float64]] = []
    while not each or (len(each) < REPEATS and time.monotonic() < end):
        found = [timed(engine, kernel, ask) for ask in asks(engine, context)]
        steps = np.array([[one.program_steps[p] for p in used] for one in found], np.float64)
        each.append(explained(steps, np.array([one.total_ms for one in found])))
    ms = dict(zip((names[p] for p in used), np.median(each, axis=0).tolist(), strict=True))
    tokens = {names[p]: int(engine.manifest.programs.rows["tokens"][p]) for p in used}
    return {"context": context, "ms": ms, "tokens": tokens}


def run(folder: Folder, seconds: float, earlier: Json) -> Json:
    """All contexts of glm5-mini that there is time for."""
    about = plan_for(folder, "mini")
    end = time.monotonic() + seconds
    rows: list[Json] = []
    left_out: list[str] = []
    with loaded(folder, about) as engine:
        backend: Any = engine.backend
        kernel = backend.launch(engine.tables, stops=())
        try:
            for predicted in about["predicted"]:
                if time.monotonic() > end:
                    left_out.append(f"context {predicted['context']}")
                    continue
                rows.append(measure(engine, kernel, predicted["context"], end))
        finally:
            kernel.close()
    return {
        "passed": not left_out and all(ms > 0 for row in rows for ms in row["ms"].values()),
        "steps": rows,
        "left_out": left_out,
        "summary": [
            (f"context {row['context']}", f"{name}, {row['tokens'][name]} tokens at most", f"{ms:.3f} ms")
            for row in rows
            for name, ms in row["ms"].items()
        ],
    }
