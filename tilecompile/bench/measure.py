"""One bench run: load, choose read kernels, measure in rounds, then the peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilecompile.bench import DEFAULT_CONTEXT, DEFAULT_ROUNDS
from tilecompile.bench.ablate import check_ablation, variants
from tilecompile.bench.against import check_peers, measure_peers
from tilecompile.bench.report import figures, machine, memory, resident_bytes
from tilecompile.bench.roof import Roof
from tilecompile.bench.rounds import ENGINE, Steps, run_rounds, steps_around
from tilecompile.errors import InputError
from tilecompile.runtime.engine import Engine, load
from tilecompile.runtime.kernel import Kernel
from tilecompile.runtime.manifest import read_manifest
from tilecompile.steps import another_kernel, fill_caches, window
from tilecompile.traffic import stated_reads

MOST_ROUNDS = 10_000

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BenchOptions:
    """What to measure. `context` and `threads` are the engine's own defaults where None; `peers` by name, and `model`
    where they get the weights; `ablate` adds the engine's variants."""

    engine: Path
    context: int | None = None
    threads: int | None = None
    model: str | None = None
    peers: Sequence[str] = ()
    ablate: bool = False
    rounds: int = DEFAULT_ROUNDS


def bench_engine(options: BenchOptions, progress: Progress = lambda stage, done, total: None) -> dict[str, Any]:
    """Measures an engine: see `report.figures` for what is returned, beside `machine`, `memory` and `peers`.

    `progress(stage, done, total)` is told of each stage. Raises InputError for options that don't fit the engine, and
    EngineError as `load` does.
    """
    if not 1 <= options.rounds <= MOST_ROUNDS:
        raise InputError(f"--rounds is {options.rounds}, want 1 to {MOST_ROUNDS}")
    manifest = read_manifest(options.engine)
    check_peers(options.peers, manifest, options.model)
    context = min(DEFAULT_CONTEXT, manifest.max_seq_len) if options.context is None else options.context
    window(context, 1, manifest.max_seq_len)
    stated_reads(manifest)
    progress("load", 0, 1)
    before = resident_bytes()
    with load(options.engine, options.threads) as engine:
        held = memory(manifest, before, resident_bytes())
        fill_caches(engine)
        with another_kernel(engine) as kernel:
            steps, found = _rounds(engine, kernel, context, options, progress)
            peers = measure_peers(
                *(engine, kernel, options.peers, options.model, context, steps), lambda text: progress(text, 0, 1)
            )
        data = manifest.data
        return {
            "engine": str(options.engine),
            "model": data["model"]["name"],
            "weights": data["weights"]["dtype"],
            "cache": data["cache"],
            "context": context,
            "threads": engine.threads,
            **found,
            "machine": machine(manifest),
            "memory": held,
            "peers": peers,
        }


def _rounds(
    engine: Engine, kernel: Kernel, context: int, options: BenchOptions, progress: Progress
) -> tuple[Steps, dict[str, Any]]:
    """The rounds' steps and figures. What they take besides the engine's memory is free again afterwards."""
    with ExitStack() as stack:
        subjects = {ENGINE: kernel}
        if options.ablate:
            check_ablation(engine)
            subjects |= stack.enter_context(variants(engine, lambda text: progress(text, 0, 1)))
        steps = steps_around(engine, kernel, context)
        roof = Roof(engine, stated_reads(engine.manifest).mean(steps.contexts))
        tried = roof.choose(lambda done, total: progress("read kernels", done, total))
        rounds = run_rounds(
            *(engine, subjects, roof, steps, options.rounds), lambda done, total: progress("rounds", done, total)
        )
        return steps, figures(engine, rounds, steps, roof, tried)
