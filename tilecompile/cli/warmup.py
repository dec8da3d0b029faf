"""tilecompile warmup: how long from process start to the first token, next to other systems."""

from __future__ import annotations

import datetime
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilecompile import __version__
from tilecompile.errors import InputError

if TYPE_CHECKING:
    from tilecompile.measure.warmup.systems import System
    from tilecompile.runtime.progress import Progress


def warmup(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="Engine folder.")],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="Peers: transformers, torch-compile, torch-compile-kept (cache kept), cuda-graphs, vllm, sglang.",
        ),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COMMAND", help="A peer of your own: a command that prints marks. Repeatable."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Checkpoint that the engine was compiled from, for peers.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="1 to the engine's workers.")] = None,
    repeat: Annotated[int, typer.Option(help="Processes a state; a system above 20 s gets one.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with bars there.")] = None,
) -> None:
    """Measure process start to first token in fresh processes, from a warm and from a cold file cache.

    Split into import, load, compile or capture, first step. Before a cold start the files that the system reads are
    evicted from the file cache; what other processes have mapped can't be, so the evicted share is reported.

    A peer's COMMAND may name {engine}, {model} (a checkpoint folder), {ids}, {threads}, {dtype} and {device} (cpu or
    cuda). It prints JSON lines: {"mark": NAME, "time": T} for imported, loaded, compiled and first_token, T in seconds
    of CLOCK_MONOTONIC; only first_token is needed. After that {"files": [PATH, …]}, the files that it has read, makes
    cold starts possible.
    """
    from tilecompile.cli.files import check_target, write_whole
    from tilecompile.cli.output import StageProgress, note, print_json
    from tilecompile.measure.warmup.systems import chosen

    systems = chosen(against, peer or [])
    if repeat < 1:
        raise InputError(f"--repeat is {repeat}, want 1 at least")
    if html is not None:
        check_target("--html", html)
    with StageProgress() as progress:
        report = _report(engine, systems, model, threads, repeat, progress)
    if html is not None:
        from tilecompile.measure.warmup.page import page

        write_whole("--html", html, page(report))
    if as_json:
        print_json(report)
    else:
        _print(report)
    if html is not None:
        note(f"{html}: written")


def _report(
    engine: Path, systems: list[System], model: str | None, threads: int | None, repeat: int, progress: Progress
) -> dict[str, Any]:
    """Everything that was measured, as JSON values."""
    from tilecompile.measure.peers import device_of
    from tilecompile.measure.warmup import measure
    from tilecompile.measure.warmup.systems import ENGINE, check_device
    from tilecompile.runtime.folder.manifest import read_manifest

    if any(system.gpu_only for system in systems):
        check_device(systems, device_of(read_manifest(engine)), str(engine))
    need_checkpoint = any(system.needs_model() and system.unavailable() is None for system in systems)
    with tempfile.TemporaryDirectory(prefix="tilecompile-checkpoint-") as temporary:
        about = measure.describe(engine, model, threads, need_checkpoint)
        if need_checkpoint and about["checkpoint"] is None:
            progress("checkpoint for peers", 0, 1)
            about = measure.describe(engine, model, threads, need_checkpoint, Path(temporary))
        ids = [token % about["vocab_size"] for token in measure.PROMPT]
        values = {
            "engine": str(engine),
            "model": about["checkpoint"] or "",
            "ids": ",".join(map(str, ids)),
            "threads": str(about["threads"]),
            "dtype": about["dtype"],
            "device": about["device"],
        }
        found = [measure.measure(ENGINE, values, [engine], repeat, progress)]
        for system in systems:
            folders = [Path(about["checkpoint"])] if system.needs_model() and about["checkpoint"] else []
            try:
                found.append(measure.measure(system, values, folders, repeat, progress))
            except measure.SystemFailed as error:
                found.append({"name": system.name, "about": system.about, "unavailable": str(error)})
    for state in ("warm", "cold"):
        base = found[0][state].get("seconds")
        for figures in (one[state] for one in found if state in one):
            if base and "seconds" in figures:
                figures["ratio"] = round(figures["seconds"] / base, 3)
    del about["checkpoint"], about["dtype"]
    return {
        "engine": str(engine),
        **about,
        "prompt_ids": ids,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["tilecompile", *sys.argv[1:]]),
        "tilecompile": __version__,
        "systems": found,
    }


def _print(report: dict[str, Any]) -> None:
    """Prints the table and the notes to it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tilecompile.measure.warmup.measure import PHASES
    from tilecompile.measure.warmup.page import seconds
    from tilecompile.show.units import size

    console = Console()
    table = Table("system", "file cache", "import", "load", "compile", "first step", "first token", "×", box=None)
    table.padding, table.pad_edge = (0, 1, 0, 0), False
    for index, column in enumerate(table.columns):
        column.justify, column.no_wrap = ("left", "right")[index > 1], index == 0
    lines = []
    for system in report["systems"]:
        name = system["name"]
        if "unavailable" in system:
            lines.append(f"{name}: {system['unavailable']}")
        for state in ("warm", "cold"):
            figures = system.get(state, {})
            if "unavailable" in figures:
                lines.append(f"{name}: no cold start: {figures['unavailable']}")
            if "seconds" not in figures:
                continue
            ratio = f"{figures['ratio']:.1f}" if "ratio" in figures else ""
            phases = [seconds(figures["phases"][phase]) for phase in PHASES]
            table.add_row(Text(name), state, *phases, seconds(figures["seconds"]), ratio)
            if "evicted" in figures:
                lines.append(
                    f"{name}: {figures['evicted']:.0%} of {size(figures['bytes'])} evicted before each cold start"
                )
        if system.get("token", report["systems"][0]["token"]) != report["systems"][0]["token"]:
            lines.append(f"{name}: its first token is {system['token']}, the engine's {report['systems'][0]['token']}")
    console.print(table)
    if len(report["systems"]) > 1:
        console.print(Text("×: first token, over the engine's from the same file cache"))
    console.print(Text(f"compiled offline in {seconds(report['compile_seconds'])}, once"))
    for line in lines:
        console.print(Text(line))
