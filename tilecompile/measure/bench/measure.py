"""One bench run: load, choose read kernels, measure in rounds, then the peers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tilecompile.cost.traffic import stated_reads
from tilecompile.errors import InputError
from tilecompile.measure.bench import DEFAULT_CONTEXT, DEFAULT_ROUNDS
from tilecompile.measure.bench.ablate import check_ablation, variants
from tilecompile.measure.bench.against import Again, Peers, measure_peers
from tilecompile.measure.bench.gpu import gpu_figures
from tilecompile.measure.bench.prefill import first_token_ms, measure_prefill
from tilecompile.measure.bench.report import figures, gpu_names, machine, memory, resident_bytes
from tilecompile.measure.bench.rounds import ENGINE, Steps, run_rounds, steps_around
from tilecompile.measure.bench.speculation import Drafting, measure_speculation
from tilecompile.measure.peers import device_of
from tilecompile.measure.roof import Roof, stated_roof
from tilecompile.measure.steps import fill_caches, kernel_for_steps, window
from tilecompile.runtime.cuda.options import cuda_options
from tilecompile.runtime.engine import Engine
from tilecompile.runtime.folder.manifest import Manifest, read_manifest
from tilecompile.runtime.kernel import Resident
from tilecompile.runtime.load import checked_threads, load
from tilecompile.runtime.progress import Progress, silent
from tilecompile.targets.cpu.build import find_compiler

MOST_ROUNDS = 10_000

PEER_ROUNDS, PEER_PREFILLS = 5, 2
"""Times that the engine's steps and its reading of a prompt are measured before a peer, and again after it."""


@dataclass(frozen=True)
class BenchOptions:
    """What to measure. `context` and `threads` are the engine's own defaults where None; `ablate` adds the engine's
    variants; `machine` (a name or a file) states the bandwidth of a GPU's memory, by default the engine's own; `gpus`,
    `on_one_gpu` and `weights` are those of `load`; `prefill` and `speculation` say whether those are measured too, and
    `drafting` on what.
    """

    engine: Path
    context: int | None = None
    threads: int | None = None
    peers: Peers = field(default_factory=Peers)
    ablate: bool = False
    rounds: int = DEFAULT_ROUNDS
    machine: str | None = None
    gpus: Sequence[int] | None = None
    on_one_gpu: bool = False
    weights: str | None = None
    prefill: bool = True
    speculation: bool = True
    drafting: Drafting = field(default_factory=Drafting)


def bench_engine(options: BenchOptions, progress: Progress = silent) -> dict[str, Any]:
    """Measures an engine: see `report.figures` for what is returned, beside `machine`, `memory`, `peers`, and
    `prefill` and `speculation` as `measure_prefill` and `measure_speculation` have them, None where not measured.

    On GPUs the engine is closed before a peer runs: its resident kernel has them for itself.
    `progress(stage, done, total)` is called with each stage. Raises InputError for options that don't fit the engine,
    and EngineError as `load` does.
    """
    if not 1 <= options.rounds <= MOST_ROUNDS:
        raise InputError(f"--rounds is {options.rounds}, want 1 to {MOST_ROUNDS}")
    manifest = read_manifest(options.engine)
    options.peers.check(manifest)
    if options.speculation:
        options.drafting.check(manifest)
    gpu = device_of(manifest) == "cuda"
    _check_options(options, manifest, gpu)
    context = min(DEFAULT_CONTEXT, manifest.max_seq_len) if options.context is None else options.context
    window(context, 1, manifest.max_seq_len)
    stated_reads(manifest)
    gpus = 1 if options.on_one_gpu else manifest.devices
    stated = stated_roof(manifest, options.machine, gpus) if gpu else None

    how: dict[str, Any] = {"gpus": options.gpus, "on_one_gpu": options.on_one_gpu, "weights": options.weights}
    checked_threads(manifest, cuda_options(**how), options.threads)

    progress("load", 0, 1)
    before = resident_bytes()
    found: list[dict[str, Any]] = []
    with load(options.engine, options.threads, **how) as engine:
        threads = engine.threads
        host = {**machine(manifest), "gpus": gpu_names(engine)}
        held = memory(manifest, before, resident_bytes())
        if options.weights is None:  # else the caches are drawn too
            fill_caches(engine)
        with kernel_for_steps(engine) as kernel:
            if stated is not None:
                figures_found = gpu_figures(engine, kernel, context, options.rounds, stated, progress)
            else:
                steps, figures_found = _rounds(engine, kernel, context, options, progress)
            ms = float(figures_found["ms_per_step"])
            prefill = speculation = None
            if options.speculation:
                count = partial(progress, "speculation")
                speculation = measure_speculation(engine, kernel, context, ms, options.drafting, count)
            if options.prefill:
                prefill = measure_prefill(engine, kernel, ms, partial(progress, "prefill"))
            if stated is None:
                prompt = prefill["prompt_tokens"] if prefill else None

                def engine_ms(when: str) -> list[float]:
                    progress(when, 0, 1)
                    return [steps.ms(engine, kernel) for _ in range(PEER_ROUNDS)]

                def prefill_ms(when: str) -> list[float]:
                    progress(f"{when}, prefill", 0, 1)
                    return [first_token_ms(engine, kernel, prompt) for _ in range(PEER_PREFILLS)] if prompt else []

                again = Again(engine_ms, prompt, prefill_ms)
                found = measure_peers(options.peers, manifest, context, threads, again, progress)
    if stated is not None:
        again = Again(lambda _: [ms], None, lambda _: [])
        found = measure_peers(options.peers, manifest, context, threads, again, progress)
    data = manifest.data
    return {
        "engine": str(options.engine),
        "model": data["model"]["name"],
        "weights": data["weights"]["dtype"],
        "cache": data["cache"],
        "context": context,
        "threads": threads,
        **figures_found,
        "prefill": prefill,
        "speculation": speculation,
        "machine": host,
        "memory": held,
        "peers": found,
    }


def _check_options(options: BenchOptions, manifest: Manifest, gpu: bool) -> None:
    """Raises InputError for options of the other kind of target."""
    target = manifest.data["target"]["name"]
    if gpu and options.ablate:
        raise InputError(f"--ablate changes a CPU's kernel, and {options.engine} is for {target}")
    if options.ablate:
        find_compiler()
    if gpu and options.threads is not None:
        raise InputError(f"--threads is for CPUs, and {options.engine} is for {target}")
    if not gpu and options.machine is not None:
        raise InputError(
            f"--machine says what a GPU's memory gives, and {options.engine} is for {target}: it is measured"
        )


def _rounds(
    engine: Engine, kernel: Resident, context: int, options: BenchOptions, progress: Progress
) -> tuple[Steps, dict[str, Any]]:
    """The rounds' steps and figures. Memory that the rounds allocate is free again afterwards."""
    with ExitStack() as stack:
        subjects = {ENGINE: kernel}
        if options.ablate:
            check_ablation(engine)
            subjects |= stack.enter_context(variants(engine, progress))
        steps = steps_around(engine, kernel, context)
        roof = Roof(engine, stated_reads(engine.manifest).mean(steps.contexts))
        tried = roof.choose(partial(progress, "read kernels"))
        rounds = run_rounds(engine, subjects, roof, steps, options.rounds, partial(progress, "rounds"))
        return steps, figures(engine, rounds, steps, roof, tried)
