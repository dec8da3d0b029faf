"""What the command line shows: progress, tables, figures. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tilecompile.engine.placement_json import read_table
from tilecompile.runtime.chat import CHAT
from tilecompile.show.units import size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from tilecompile.runtime.engine import Engine
    from tilecompile.runtime.folder.manifest import Manifest
    from tilecompile.runtime.progress import Count
    from tilecompile.runtime.run import Stats


def note(text: str) -> None:
    """A line for the user that is no result."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, ensure_ascii=False))


class StageProgress:
    """Shows the stages of a compilation: a bar on a terminal, else a line when a stage begins."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._stage: str | None = None
        self._bar: Progress | None = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description:<9}"), BarColumn(), TextColumn("{task.fields[state]}"))
            self._bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=1, state="")
        return self

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` of a stage: steps, or bytes where weights are packed."""
        new, self._stage = stage != self._stage, stage
        if self._bar is not None:
            state = f"{size(done)} of {size(total)}" if total > 1000 else ""
            self._bar.update(self._task, description=stage, completed=done, total=total, state=state)
        elif new:
            more = f" {size(total)}" if total > 1000 else ""
            note(f"{time.perf_counter() - self._begin:6.1f} s  {stage}{more}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def weights_progress() -> Count | None:
    """Shows the bytes of weights that have been read, in one line that is overwritten; None without a terminal."""

    def progress(done: int, total: int) -> None:
        end = "\n" if done >= total else ""
        print(f"\rloading weights {done / 1e9:.1f} of {total / 1e9:.1f} GB", end=end, file=sys.stderr, flush=True)

    return progress if sys.stderr.isatty() else None


def ms_per_token(stats: Stats) -> float:
    """Milliseconds between the tokens of a request, the first apart; of a request with one token, those of a step."""
    later = stats.total_ms - stats.time_to_first_token_ms
    return later / (stats.tokens - 1) if stats.tokens > 1 and later > 0 else stats.ms_per_step


def accepted(stats: Stats) -> list[str]:
    """How many tokens a round of speculation gave, in words; nothing for a request, or an engine, without rounds."""
    length = stats.accepted_length
    return [f"{length:.2f} tokens a round"] if length else []


def timings(engine: Engine, stats: Stats) -> str:
    """The figures of one generation, in one line."""
    figures = [
        f"{ms_per_token(stats):.3f} ms per token",
        *accepted(stats),
        f"{stats.time_to_first_token_ms:.1f} ms to the first token",
        f"{engine.stats.load_ms:.0f} ms to load",
        f"{engine.threads} threads",
    ]
    about = f"{stats.tokens} tokens after a prompt of {stats.prompt_tokens} (ended by: {stats.finish}); "
    return about + ", ".join(figures)


def engine_summary(manifest: Manifest) -> dict[str, Any]:
    """What `inspect --json` prints: the engine, figures of its decode program at the top, all programs below."""
    data, decode = manifest.data, manifest.program("decode")
    return {
        "model": data["model"]["name"],
        "architecture": data["model"]["architecture"],
        "target": data["target"]["name"],
        "isa": data["target"]["isa"],
        "machine": data["machine"],
        "devices": data["devices"],
        "workers": data["workers"],
        "placement": data["placement"],
        "max_seq_len": data["max_seq_len"],
        "vocab_size": data["vocab_size"],
        "eos_token_ids": data["eos_token_ids"],
        "weights": data["weights"]["dtype"],
        "weights_source": data["weights"]["source"],
        "cache": data["cache"],
        "tasks": decode["tasks"],
        "events": decode["events"],
        "edges": decode["edges"],
        "bytes_per_step": decode["bytes_per_step"],
        "ops": decode["ops"],
        "programs": data["programs"],
        "placement_tables": _placement_tables(manifest),
        "pool_bytes": [pool["bytes"] for pool in manifest.pools],
        "arena_bytes": manifest.arenas,
        "resources": data.get("resources"),
        "compile_seconds": data["compile_seconds"],
        "format": data["format"],
        "tilecompile": data["tilecompile"],
    }


def _placement_tables(manifest: Manifest) -> dict[str, Any]:
    """The placement table of each program, for engines of several devices."""
    names = [program["name"] for program in manifest.data["programs"]] if manifest.data["devices"] > 1 else []
    return {name: read_table(manifest, name) for name in names}


def print_engine(manifest: Manifest) -> None:
    """The engine as tables on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    about = engine_summary(manifest)
    console = Console()
    table = Table(title=Text(str(manifest.folder)), show_header=False, title_justify="left")
    weights = sum(about["pool_bytes"])
    arenas = {key: sum(arena[key] for arena in manifest.arenas) for key in ("activation", "cache", "io")}
    for name, value in (
        ("model", f"{about['model']} ({about['architecture']})"),
        ("target", f"{about['target']}, instruction set {about['isa']}"),
        ("machine", f"{about['machine']}: {about['devices']} device(s), {about['workers']} workers"),
        ("placement", about["placement"]),
        ("context", f"{about['max_seq_len']} positions, cache {about['cache']}, vocabulary {about['vocab_size']}"),
        ("stops at", ", ".join(map(str, about["eos_token_ids"])) or "no id (only a request's own stops end a text)"),
        ("weights", f"{about['weights']}, {size(weights)}, from: {about['weights_source']}"),
        ("memory", ", ".join(f"{key} {size(count)}" for key, count in arenas.items())),
        ("tokenizer", "yes" if manifest.tokenizer else "no"),
        ("chat template", "yes" if CHAT in manifest.data["files"] else "no"),
        ("compiled", f"in {about['compile_seconds']:.1f} s by tilecompile {about['tilecompile']}"),
    ):
        table.add_row(Text(name), Text(str(value)))
    console.print(table)
    programs = Table("program", "tasks", "events", "edges", "read a step", "tasks of each op")
    for program in about["programs"]:
        ops = ", ".join(f"{op} {count}" for op, count in sorted(program["ops"].items(), key=lambda item: -item[1]))
        figures = [str(program[key]) for key in ("tasks", "events", "edges")]
        programs.add_row(Text(program["name"]), *figures, size(program["bytes_per_step"]), Text(ops))
    console.print(programs)
    if about["resources"]:
        _print_resources(console, about["resources"])
    wide = Console(width=max(console.width, PLACEMENT_COLUMNS))
    for program, table_of in about["placement_tables"].items():
        _print_placement(wide, program, table_of)


def _print_resources(console: Console, about: dict[str, Any]) -> None:
    """Prints what a GPU kernel takes of an SM, and each of its task kinds alone."""
    from rich.table import Table
    from rich.text import Text

    table = Table("kernel", "registers", "spills", "local", "shared memory")
    ring = f"with a ring of {about['ring']['slots']} x {size(about['ring']['slot_bytes'])}"
    rows = [("the whole", about["kernel"], ring), *((kind["kind"], kind, "") for kind in about["kinds"])]
    for name, used, more in rows:
        figures = [str(used["registers"]), *(size(used[key]) for key in ("spills", "local"))]
        table.add_row(Text(name), *figures, Text(f"{size(used['shared'])} {more}".strip()))
    console.print(table)


PLACEMENT_COLUMNS = 118
"""Least width of a placement's table, so that names aren't cut off."""


def _print_placement(console: Console, program: str, about: dict[str, Any]) -> None:
    """Prints where a program's operators are placed, and the exchanges that this costs."""
    from rich.table import Table
    from rich.text import Text

    def span(counts: list[int]) -> str:
        low, high = size(min(counts)), size(max(counts))
        return high if low == high else f"{low} to {high}"

    table = Table("operator", "layers", "devices", "divided by", "read a device", "exchanges", "pushed")
    table.columns[0].overflow = "fold"
    table.title, table.title_justify = Text(f"{program} at a context of {about['context']}"), "left"
    for row in about["operators"]:
        figures = (span(row["read"]), str(row["exchanges"]), size(row["pushed"]))
        table.add_row(Text(row["operator"]), str(row["layers"]), str(row["devices"]), Text(row["axis"]), *figures)
    console.print(table)
    console.print(
        f"{span(about['read'])} read a device; {about['exchanges']} exchanges, {about['chain']} of them one after the "
        f"other, push {size(about['pushed'])}",
        highlight=False,
    )
