"""tilecompile simulate and calibrate: a step on a model of a machine, and what this machine's model is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tilecompile.bench import DEFAULT_CONTEXT
from tilecompile.errors import InputError


def simulate(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="Engine folder.")],
    machine: Annotated[str, typer.Option(metavar="NAME|FILE", help="Machine, by name or as a TOML file.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write a trace there, for ui.perfetto.dev.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(metavar="N", help=f"Positions in the caches.  [default: {DEFAULT_CONTEXT}, or all]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="On a CPU: 1 to the engine's workers.  [default: cores]")] = None,
    latencies: Annotated[float, typer.Option(metavar="X", help="Multiply the time that events take to be seen.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Predict the time of a decode step on a machine.

    The tasks of the engine's own program are simulated one by one: workers and threads, the events between them, the
    memory that a device's workers share, loaders that run ahead, links between devices. What these cost is in the
    machine's file: assumed, or measured by `tilecompile calibrate`. The result is simulated, never measured. The
    trace is like that of `tilecompile timeline`.
    """
    import tilecompile.ops  # noqa: F401  (registers the tile ops)
    from tilecompile.cli_files import check_target, write_whole
    from tilecompile.cli_output import note, print_json
    from tilecompile.graph_json import read_graph
    from tilecompile.runtime.manifest import read_manifest
    from tilecompile.runtime.tables import load_tables
    from tilecompile.schedules.machine import load_machine
    from tilecompile.simulate.report import figures, print_figures
    from tilecompile.simulate.step import simulate as simulate_step
    from tilecompile.simulate.step import simulator_of
    from tilecompile.timeline.trace import trace

    if output is not None:
        check_target("--output", output)
    if not 0 <= latencies <= 1000:
        raise InputError(f"--latencies is {latencies}, want 0 to 1000")
    described = load_machine(machine)
    costs = simulator_of(described)
    local, remote = costs.event_ns * latencies, costs.remote_event_ns * latencies
    described = replace(described, simulator=replace(costs, event_ns=local, remote_event_ns=remote))
    manifest = read_manifest(engine)
    at = min(DEFAULT_CONTEXT, manifest.max_seq_len) if context is None else context
    nodes = read_graph(manifest).nodes
    found = simulate_step(manifest, load_tables(manifest), nodes, described, at, threads)
    about = {"engine": str(engine), "latencies": latencies, **figures(found, manifest, described, at)}
    if output is not None:
        write_whole("--output", output, json.dumps(trace(found.spans, about), ensure_ascii=False))
    if as_json:
        print_json(about)
    else:
        print_figures(about)
    if output is not None:
        note(f"{output}: written")


def calibrate(
    engines: Annotated[list[Path], typer.Argument(metavar="ENGINE…", help="Engines whose steps are recorded.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Machine description to write.")],
    name: Annotated[str, typer.Option(help="Name of the machine in it.")] = "this-machine",
    steps: Annotated[int | None, typer.Option(help="Steps to run of each recording.  [default: some seconds]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure what a step costs on this machine, for `tilecompile simulate --machine FILE`.

    Measured are the read bandwidth of one thread and of all, by working set, and on steps of the engines, recorded as
    `tilecompile timeline` does, how long an event takes to be seen and what the tasks of each op cost. Ops that the
    engines don't have cost nothing, so give engines of the models that will be simulated: two or three that differ in
    size and in their workers. The machine should do nothing else meanwhile: the recorded steps are shown beside what
    the simulation makes of them, and where these differ much, something else had the cores.
    """
    import tilecompile.ops  # noqa: F401  (registers the tile ops)
    from tilecompile.cli_files import check_target, write_whole
    from tilecompile.cli_output import StageProgress, note, print_json
    from tilecompile.simulate.calibrate import calibrate as measure
    from tilecompile.simulate.report import print_checks
    from tilecompile.simulate.toml import machine_toml
    from tilecompile.timeline.record import LEAST_POSITIONS, check_steps

    check_target("--output", output)
    if steps is not None:
        check_steps(steps, LEAST_POSITIONS)
    with StageProgress() as progress:
        machine, checks = measure(engines, name, steps, progress)
    write_whole("--output", output, machine_toml(machine))
    if as_json:
        print_json({"machine": name, "output": str(output), "recordings": [vars(check) for check in checks]})
    else:
        print_checks(checks)
    note(f"{output}: written")
