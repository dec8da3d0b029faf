"""tilecompile calibrate: what this machine's model is, for simulate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
    the simulation makes of them, and where these differ much, something else had the cores. A recording is repeated
    for up to a minute while the memory is not as fast as when its bandwidth was measured; `memory` is how fast it was
    then, in parts of that.
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
