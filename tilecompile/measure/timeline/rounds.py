"""A round of speculation on this machine: steps of different programs, recorded one after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tilecompile.cost.step_time.spans import Spans, spans_of, tasks_of
from tilecompile.errors import EngineError, InputError
from tilecompile.measure.bench import DEFAULT_CONTEXT
from tilecompile.measure.bench.report import machine
from tilecompile.measure.steps import another_kernel, fill_caches, time_request, window
from tilecompile.measure.timeline.perfetto import NamedStep
from tilecompile.measure.timeline.record import KEPT, Reading, check_recordable, profiling_library, read_profile
from tilecompile.measure.timeline.summary import summary
from tilecompile.runtime.cuda.options import CudaOptions
from tilecompile.runtime.engine import Engine
from tilecompile.runtime.folder.manifest import Manifest, read_manifest
from tilecompile.runtime.load import checked_threads, load
from tilecompile.runtime.progress import Count, Progress, silent
from tilecompile.runtime.run import Ask

REQUESTS = 16
"""Requests whose last rounds are recorded."""

TOKENS = 4 * KEPT
"""Tokens of a request: more than the rounds of the steps that are kept can give."""


@dataclass(frozen=True)
class MeasuredRound:
    """The steps of a round in order, and what was measured of which engine, as JSON values."""

    steps: Sequence[NamedStep]
    about: dict[str, Any]

    @property
    def duration(self) -> float:
        """Nanoseconds."""
        return sum(step.spans.duration for step in self.steps)


def check_drafts(manifest: Manifest, drafts: int) -> None:
    """InputError unless the engine's rounds can have that many drafts, one at least."""
    most = manifest.programs.drafts
    if not most:
        raise InputError(f"--drafts is {drafts}, and {manifest.folder} drafts no tokens")
    if not 1 <= drafts <= most:
        raise InputError(f"--drafts is {drafts}, want 1 to {most} (those of the engine)")


def measure_round(
    path: Path,
    drafts: int,
    context: int | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> MeasuredRound:
    """Records rounds with that many drafts, the model's own ones, and takes the one of median length.

    Errors are those of `measure` and `check_drafts`.
    """
    manifest = read_manifest(path)
    check_drafts(manifest, drafts)
    context = min(DEFAULT_CONTEXT, manifest.max_seq_len) if context is None else context
    window(context, 1, manifest.max_seq_len)
    checked_threads(manifest, CudaOptions(), threads)
    check_recordable(manifest)
    progress("load", 0, 1)
    with load(path, threads) as engine:
        progress("build", 0, 1)
        rounds = record_rounds(engine, context, drafts, partial(progress, "rounds"))
        rounds.sort(key=lambda steps: sum(step.spans.duration for step in steps))
        about = {
            "engine": str(path),
            "model": manifest.data["model"]["name"],
            "context": context,
            "drafts": drafts,
            "threads": engine.threads,
            "machine": machine(manifest),
            "source": "measured",
            "records": len(rounds),
        }
    return MeasuredRound(rounds[len(rounds) // 2], about)


def record_rounds(engine: Engine, context: int, drafts: int, progress: Count = silent) -> list[list[NamedStep]]:
    """The complete rounds with that many drafts among the last steps of some requests around a context."""
    library = profiling_library(engine)
    contexts = window(context, TOKENS, engine.manifest.max_seq_len)
    ids = np.full(contexts.start - 1, contexts.start % engine.manifest.vocab_size, np.int32)
    found: list[list[NamedStep]] = []
    fill_caches(engine)
    with another_kernel(engine, library) as kernel:
        library.tc_profile_every(kernel.handle, 1)
        begin = read_profile(library, kernel)
        for i in range(REQUESTS):
            time_request(engine, kernel, Ask(ids, len(ids) - 1, len(contexts), drafts=drafts))
            read = read_profile(library, kernel)
            rate = (read.nanoseconds - begin.nanoseconds) / (read.ticks - begin.ticks)
            found += _rounds(engine, read, rate, drafts)
            progress(i + 1, REQUESTS)
    if not found:
        raise EngineError(f"{engine.manifest.folder}: no round with {drafts} drafts fits the context")
    return found


def _rounds(engine: Engine, read: Reading, rate: float, drafts: int) -> Iterator[list[NamedStep]]:
    """The complete rounds of a reading; a round goes from a step of `verify` to the next one. `rate` is that of the
    clock, in nanoseconds a tick."""
    names = [str(program["name"]) for program in engine.manifest.data["programs"]]
    numbers = np.arange(max(1, read.last - KEPT + 1), read.last + 1)
    programs, tokens = read.steps[numbers % len(read.marks)].T.tolist()
    marks = read.marks[numbers % len(read.marks)]
    begins = [i for i, (p, n) in enumerate(zip(programs, tokens, strict=True)) if names[p] == "verify" and n > 1]
    for begin, end in pairwise(begins):
        if tokens[begin] != drafts + 1 or end - begin != drafts + 1:  # the last rounds of a request draft less
            continue
        steps = []
        for i in range(begin, end):
            tasks = tasks_of(engine.manifest, engine.tables, engine.threads, programs[i])
            row = read.rows[numbers[i] % KEPT]
            stamps = rate * (row[2:] - row[1]).view(np.int64).astype(np.float64)  # wraps for other programs
            duration = rate * float(marks[i + 1] - marks[i])
            steps.append((names[programs[i]], tokens[i], spans_of(tasks, stamps[0::2], stamps[1::2], duration)))
        yield in_order(steps)


def in_order(steps: Iterable[tuple[str, int, Spans]]) -> list[NamedStep]:
    """Steps one after another, from their programs, tokens and spans."""
    found: list[NamedStep] = []
    begin = 0.0
    for program, tokens, spans in steps:
        found.append(NamedStep(program, tokens, begin, spans))
        begin += spans.duration
    return found


def round_summary(measured: MeasuredRound) -> dict[str, Any]:
    """The figures of a round, as JSON values: `round_us`, and `steps` with `program`, `tokens`, `begin_us` and the
    figures of `summary` each."""
    return {
        "round_us": measured.duration / 1e3,
        "steps": [
            {"program": s.program, "tokens": s.tokens, "begin_us": s.begin / 1e3, **summary(s.spans)}
            for s in measured.steps
        ],
    }


def print_round(found: dict[str, Any]) -> None:
    """Prints the content of --json as text and tables."""
    from rich.console import Console
    from rich.table import Table

    where = found["machine"].get("name") or found["machine"]["cpu"]
    print(f"{found['engine']}: {found['model']}; {where}")
    print(
        f"a {found['source']} round with {found['drafts']} draft(s) at context {found['context']}: "
        f"{found['round_us']:.1f} µs"
    )
    table = Table("step", "tokens", "begin", "time", "share", "tasks", "at work", "most time", pad_edge=False)
    for step in found["steps"]:
        times = (
            f"{step['begin_us']:.1f} µs",
            f"{step['step_us']:.1f} µs",
            f"{step['step_us'] / found['round_us']:.1%}",
        )
        ops = ", ".join(f"{op['op']} {op['share']:.0%}" for op in step["ops"][:3])
        work = (str(step["tasks"]), f"{step['shares']['work']:.1%}", ops)
        table.add_row(step["program"], str(step["tokens"]), *times, *work)
    Console().print(table)
