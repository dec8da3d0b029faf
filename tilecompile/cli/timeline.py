"""tilecompile timeline: where the time of one step goes, as a Perfetto trace and as a summary."""

from __future__ import annotations

import datetime
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tilecompile import __version__
from tilecompile.measure.bench import DEFAULT_CONTEXT


def timeline(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="Engine folder.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the trace there, for ui.perfetto.dev.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(metavar="N", help=f"Positions in the caches.  [default: {DEFAULT_CONTEXT}, or all]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="1 to the engine's workers.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps to run.  [default: some seconds]")] = None,
    drafts: Annotated[
        int | None, typer.Option(metavar="N", help="Show a round of speculation with so many drafts instead of a step.")
    ] = None,
    simulated: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Simulate a step on this machine instead of recording one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Show where the time of one decode step goes.

    The engine's kernel is built once more so that it records when each task began and ended, which needs a C++
    compiler, and steps alternate between both kernels; the engine itself stays as it is. The caches are filled with
    random numbers up to the context. The recorded step that is nearest to the mean is shown.

    The trace has a track for each worker, by device, with its tasks and what it waited for in between: an event, its
    thread (busy with another worker), the loop, or the end of the step. An arrow leads to each task from the one that
    notified the last of its events. The summary has the time of each op, the share of waiting by cause, and the
    critical path.

    With --drafts it is a round: the steps of verify, extend and draft from one verification to the next, each named and
    with its own figures; the recorded round of median length, with the model's own drafts.
    """
    from tilecompile.cli.files import check_target, write_whole
    from tilecompile.cli.output import StageProgress, note, print_json
    from tilecompile.errors import InputError
    from tilecompile.measure.timeline import rounds
    from tilecompile.measure.timeline.measure import measure
    from tilecompile.measure.timeline.perfetto import round_trace, trace
    from tilecompile.measure.timeline.predict import predict, predict_round
    from tilecompile.measure.timeline.report import print_timeline
    from tilecompile.measure.timeline.summary import summary

    if output is not None:
        check_target("--output", output)
    if simulated is not None and steps is not None:
        raise InputError(f"--steps {steps}: of a simulated timeline there is one step")
    if drafts is not None and steps is not None:
        raise InputError(f"--steps {steps}: of a round all steps are shown; give --drafts without it")
    run = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["tilecompile", *sys.argv[1:]]),
        "tilecompile": __version__,
    }
    found: dict[str, Any]
    if drafts is not None:
        if simulated is not None:
            shown = predict_round(engine, simulated, drafts, context, threads)
        else:
            with StageProgress() as progress:
                shown = rounds.measure_round(engine, drafts, context, threads, progress)
        made = round_trace(shown.steps, {**shown.about, **run})
        found, show = {**shown.about, **run, **rounds.round_summary(shown)}, rounds.print_round
    else:
        if simulated is not None:
            measured = predict(engine, simulated, context, threads)
        else:
            with StageProgress() as progress:
                measured = measure(engine, context, threads, steps, progress)
        made = trace(measured.spans, {**measured.about, **run})
        found, show = {**measured.about, **run, **summary(measured.spans)}, print_timeline
    if output is not None:
        write_whole("--output", output, json.dumps(made, ensure_ascii=False))
    if as_json:
        print_json(found)
    else:
        show(found)
    if output is not None:
        note(f"{output}: written")
