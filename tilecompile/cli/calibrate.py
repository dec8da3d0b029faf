"""tilecompile calibrate: measures the costs that `tilecompile simulate` needs of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tilecompile.errors import InputError

if TYPE_CHECKING:
    from tilecompile.schedules.machine import Machine


def calibrate(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Machine description to write.")],
    engines: Annotated[
        list[Path] | None, typer.Argument(metavar="ENGINE…", help="Engines whose steps are recorded.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option("--from", metavar="RESULTS", help="What tests/gpu/run.py --json measured, instead of engines."),
    ] = None,
    machine: Annotated[
        str | None, typer.Option(help="With --from: machine or file to fill.  [default: one such GPU]")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the machine in it.  [default: this-machine, or that of the one filled]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps to run of each recording.  [default: some seconds]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure what a step costs on this machine, for `tilecompile simulate --machine FILE`. Or --from a GPU's results.

    Measured are the read bandwidth of one thread and of all, by working set, and on steps of the engines, recorded as
    `tilecompile timeline` does, how long an event takes to be seen and what the tasks of each op cost. Ops that the
    engines don't have cost nothing, so give engines of the models that will be simulated: two or three that differ in
    size and in their workers. The machine should do nothing else meanwhile: the recorded steps are shown beside
    their simulation, and where these differ much, something else had the cores. A recording is repeated, up to twelve
    times, while others take cores or the memory's rate changes; `memory` is that rate, relative to the one measured
    first, and the simulation beside it is for memory of that rate.
    """
    import tilecompile.ops  # noqa: F401  (registers the tile ops)
    from tilecompile.cli.files import check_target, write_whole
    from tilecompile.cli.output import StageProgress, note, print_json
    from tilecompile.measure.calibrate.calibrate import calibrate as measure
    from tilecompile.measure.calibrate.from_gpu_results import machine_from
    from tilecompile.measure.calibrate.report import print_checks
    from tilecompile.measure.calibrate.toml import machine_toml
    from tilecompile.measure.timeline.record import LEAST_POSITIONS, check_steps

    check_target("--output", output)
    if results is not None:
        if engines or steps is not None:
            raise InputError(f"--from {results} takes no {'engines' if engines else '--steps'}: nothing is recorded")
        found = machine_from(results, machine, name)
        write_whole("--output", output, machine_toml(found))
        _print_filled(found, output, as_json)
        return
    if not engines:
        raise InputError("give engines to record, or --from RESULTS.json")
    if machine is not None:
        raise InputError("--machine says which description --from fills; a calibration with engines is of this machine")
    name = name or "this-machine"
    if steps is not None:
        check_steps(steps, LEAST_POSITIONS)
    with StageProgress() as progress:
        measured, checks = measure(engines, name, steps, progress)
    write_whole("--output", output, machine_toml(measured))
    if as_json:
        print_json({"machine": name, "output": str(output), "recordings": [vars(check) for check in checks]})
    else:
        print_checks(checks)
    note(f"{output}: written")


def _print_filled(machine: Machine, output: Path, as_json: bool) -> None:
    """Prints which values of a description were measured."""
    from tilecompile.cli.output import note, print_json

    costs = machine.simulator
    assert costs is not None
    gbs, seen = costs.read[-1][2], f"task_ns {costs.task_ns:g}, event_ns {costs.event_ns:g}"
    if as_json:
        values = {"read_bandwidth_gbs": gbs, "task_ns": costs.task_ns, "event_ns": costs.event_ns}
        values["remote_event_ns"] = costs.remote_event_ns
        print_json({"machine": machine.name, "output": str(output), **values, "calibrated": costs.calibrated})
    else:
        print(f"{machine.name}: memory read at {gbs:.4g} GB/s a device, {seen}; {costs.calibrated}")
    note(f"{output}: written")
