"""tilecompile simulate: a step, or a sweep of plans, on a model of a machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tilecompile.errors import InputError
from tilecompile.measure.bench import DEFAULT_CONTEXT

if TYPE_CHECKING:
    from tilecompile.measure.simulated.plans import Plan
    from tilecompile.options import CompileOptions
    from tilecompile.schedules.machine import Machine

CONTEXT = f"Positions in the caches; N,N,… for a sweep.  [default: {DEFAULT_CONTEXT}, or all]"
OUTPUT = "Write a trace there, for ui.perfetto.dev; with --sweep a picture, as .png, .svg or .pdf."
SWEEP = "Compare a model's placements, contexts, granularities and ring depths."


def simulate(
    engine: Annotated[str, typer.Argument(metavar="ENGINE|MODEL", help="Engine folder, or a model as for compile.")],
    machine: Annotated[str, typer.Option(metavar="NAME|FILE", help="Machine, by name or as a TOML file.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help=OUTPUT)] = None,
    context: Annotated[str | None, typer.Option(metavar="N", help=CONTEXT)] = None,
    threads: Annotated[int | None, typer.Option(help="On a CPU: 1 to the engine's workers.  [default: cores]")] = None,
    latencies: Annotated[float, typer.Option(metavar="X", help="Multiply the time that events take to be seen.")] = 1.0,
    acceptance: Annotated[
        float | None,
        typer.Option(metavar="X", help="Rate at which drafts are accepted, 0 to 1.  [default: GLM-5.2's curve]"),
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help=SWEEP)] = False,
    placement: Annotated[str | None, typer.Option(help="Of a model: as for compile.")] = None,
    weights: Annotated[str | None, typer.Option(help="Of a model: as for compile.")] = None,
    drafts: Annotated[int | None, typer.Option(help="Of a model: as for compile.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Predict the time of a decode step on a machine.

    The tasks of the engine's own program are simulated one by one: workers and threads, the events between them, the
    memory that a device's workers share, loaders that run ahead, links between devices. What these cost is in the
    machine's file: assumed, or measured by `tilecompile calibrate`. The result is simulated, never measured. The
    trace is like that of `tilecompile timeline`. A model is first compiled for the machine, without weights.

    Where the plan drafts, rounds of speculation of each depth are simulated too, step by step: verify, extend, and
    draft for all drafts but the first. How many tokens a round gives is not simulated: it is what was published for
    GLM-5.2 (coding at temperature 1), or what --acceptance says.
    """
    import tilecompile.ops  # noqa: F401  (registers the tile ops)
    from tilecompile.cli.files import check_target
    from tilecompile.cli.output import StageProgress
    from tilecompile.cost.simulate.step import check_threads, slower
    from tilecompile.measure.simulated.plans import compiled, is_engine, plan_of
    from tilecompile.models.registry import NAMED, config_of
    from tilecompile.options import CompileOptions
    from tilecompile.schedules.machine import load_machine

    if output is not None:
        check_target("--output", output)
    if not 0 <= latencies <= 1000:
        raise InputError(f"--latencies is {latencies}, want 0 to 1000")
    if acceptance is not None and not 0 <= acceptance <= 1:
        raise InputError(f"--acceptance is {acceptance}, want 0 to 1")
    described = slower(load_machine(machine), latencies)
    contexts = _contexts(context, sweep)
    check_threads(described, threads)
    about = {"model" if sweep else "engine": engine, "latencies": latencies}
    if is_engine(engine):
        of_model = {"--sweep": sweep or None, "--placement": placement, "--weights": weights, "--drafts": drafts}
        for name, given in of_model.items():
            if given is not None:
                raise InputError(f"{name} is for a model, and {engine} is an engine")
        _step(plan_of(Path(engine)), described, contexts, threads, acceptance, output, about, as_json)
        return
    if engine in NAMED or Path(engine).is_dir():
        limit = config_of(engine).max_position_embeddings
        for wrong in (c for c in contexts if c > limit):
            raise InputError(f"--context is {wrong}, the model's positions end at {limit}")
    made = {"placement": placement, "weights": weights, "drafts": drafts}
    options = CompileOptions(engine, Path(), machine=machine, no_weights=True, no_kernel=True, **made)  # type: ignore[arg-type]
    if sweep:
        if acceptance is not None or threads is not None:
            raise InputError("--sweep compares steps; give --acceptance and --threads without it")
        _sweep(options, described, contexts, output, about, as_json)
        return
    with StageProgress() as progress, compiled(options, contexts[0] if contexts else None, progress) as plan:
        _step(plan, described, contexts, threads, acceptance, output, about, as_json)


def _contexts(text: str | None, several: bool) -> list[int]:
    """The contexts that --context names, none if it isn't given."""
    try:
        found = [int(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        raise InputError(f"--context is {text!r}, want a number{' or several, N,N,…' if several else ''}") from None
    if len(found) > 1 and not several:
        raise InputError(f"--context is {text!r}, want one number; several are for --sweep")
    for context in found:
        if context < 1:
            raise InputError(f"--context is {context}, want 1 or more")
    return found


def _step(
    plan: Plan,
    machine: Machine,
    contexts: Sequence[int],
    threads: int | None,
    acceptance: float | None,
    output: Path | None,
    about: dict[str, object],
    as_json: bool,
) -> None:
    """Simulates and shows one step."""
    from tilecompile.cli.files import write_whole
    from tilecompile.cli.output import note, print_json
    from tilecompile.cost.rounds import PUBLISHED, constant
    from tilecompile.cost.simulate.report import figures, print_figures
    from tilecompile.measure.simulated.speculation import speculation
    from tilecompile.measure.timeline.perfetto import trace

    context = contexts[0] if contexts else min(DEFAULT_CONTEXT, plan.manifest.max_seq_len)
    found = plan.step(machine, context, threads)
    about = {**about, **figures(found, plan.manifest, machine, context)}
    curve = PUBLISHED if acceptance is None else constant(acceptance)
    about["speculation"] = speculation(plan, machine, context, threads, curve, found.ms)
    if output is not None:
        write_whole("--output", output, json.dumps(trace(found.spans, about), ensure_ascii=False))
    if as_json:
        print_json(about)
    else:
        print_figures(about)
    if output is not None:
        note(f"{output}: written")


def _sweep(
    options: CompileOptions,
    machine: Machine,
    contexts: Sequence[int],
    output: Path | None,
    about: dict[str, object],
    as_json: bool,
) -> None:
    """Simulates and shows the plans of a model."""
    from tilecompile.cli.output import StageProgress, note, print_json
    from tilecompile.measure.simulated.sweep import check_picture, draw, print_sweep, sweep

    if output is not None:
        check_picture(output)
    with StageProgress() as progress:
        rows = sweep(options, machine, contexts, progress)
    if as_json:
        print_json({**about, "source": "simulated", "machine": machine.name, "steps": rows})
    else:
        print_sweep(rows)
    if output is not None:
        draw(rows, f"{options.model} on {machine.name}, simulated", output)
        note(f"{output}: written")
