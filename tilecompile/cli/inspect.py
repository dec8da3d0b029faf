"""tilecompile inspect: what an engine is, on the terminal, as JSON or as a page."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from tilecompile.runtime.errors import InputError


def inspect(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="Engine folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page there.")] = None,
    timeline: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="For the page: what timeline --json or simulate --json printed."),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(metavar="N", help="For the page: the layer whose events it shows.")
    ] = None,
    program: Annotated[str, typer.Option(metavar="NAME", help="For the page: the step program.")] = "decode",
) -> None:
    """Show what an engine is.

    Model, target, machine, and for each step program its tasks, events, waits and the bytes that a step reads.

    The page needs nothing but itself. It shows the operators of a layer with the events between them, how each is
    placed on the devices, the bytes and the memory of each device, and, side by side, the times of the summaries that
    --timeline names; it may be given more than once.
    """
    from tilecompile.cli.files import check_target, write_whole
    from tilecompile.cli.output import StageProgress, engine_summary, note, print_engine, print_json
    from tilecompile.runtime.folder.manifest import read_manifest

    for flag, given in (("--timeline", timeline), ("--layer", layer is not None), ("--program", program != "decode")):
        if given and html is None:
            raise InputError(f"{flag} is for the page: give --html FILE too")
    if html is not None:
        check_target("--html", html)
    manifest = read_manifest(engine)
    if html is not None:
        from tilecompile.inspection.page import page
        from tilecompile.inspection.times import read_times

        times = [read_times(path, manifest) for path in timeline or []]
        with StageProgress() as progress:
            made = page(manifest, program, layer, times, shlex.join(["tilecompile", *sys.argv[1:]]), progress)
        write_whole("--html", html, made)
    if as_json:
        print_json(engine_summary(manifest))
    else:
        print_engine(manifest)
    if html is not None:
        note(f"{html}: written")
