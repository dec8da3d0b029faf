"""The summary of a step as tables on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tilecompile.measure.timeline.summary import WAITS
from tilecompile.show.units import size

PAIRS = 8
"""Pairs of ops that are shown."""

CAUSES = {
    "event": "an event",
    "thread": "their thread",
    "loop": "the loop",
    "end": "the step's end",
}
"""What workers wait for, in words."""


def print_timeline(found: dict[str, Any]) -> None:
    """Prints the content of --json as text and tables."""
    console = Console()
    for line in _about(found):
        print(line)
    console.print(_op_table(found))
    waiting = ", ".join(f"{CAUSES[cause]} {found['shares'][cause]:.1%}" for cause in WAITS)
    print(f"workers at work {found['shares']['work']:.1%}; waiting for {waiting}")
    if found["threads"] != len(found["workers"]):
        busy = ", ".join(f"{us / found['step_us']:.1%}" for us in found["thread_work_us"])
        print(f"threads at work: {busy}")
    path = found["path"]
    print(
        f"critical path: {path['tasks']} tasks {_time(path['work_us'])}, "
        f"{path['after_event']['tasks']} signals {_time(path['after_event']['us'])}, "
        f"loop {_time(path['after_thread']['us'])}, begin {_time(path['after_start']['us'])}"
    )
    if found["waits"]:
        console.print(_wait_table(found))


def _about(found: dict[str, Any]) -> list[str]:
    """What was measured or simulated, and where, in lines."""
    host = found["machine"]
    engine = (
        f"{found['engine']}: {found['model']}, weights {found['weights']}, cache {found['cache']}, "
        f"{found['devices']} device(s), {len(found['workers'])} workers, {found['threads']} threads; "
    )
    if found["source"] == "simulated":
        calibrated = found["simulated"]["calibrated"]
        return [
            f"{engine}machine {host['name']}, {f'calibrated {calibrated}' if calibrated else 'with assumed costs'}",
            f"a simulated step at context {found['context']}: {_time(found['step_us'])}, {found['tasks']} tasks, "
            f"{found['simulated']['roof_fraction']:.1%} of the roof",
        ]
    measured = found["measured"]
    return [
        f"{engine}{host['cpu']}",
        f"a step at context {measured['step_context']}: {_time(found['step_us'])}, {found['tasks']} tasks; median step "
        f"of {measured['steps']} around {found['context']}: {_time(measured['step_us'])} on the engine's kernel, "
        f"{_time(measured['recorded_step_us'])} while recording ({measured['recording_cost']:+.1%})",
    ]


def _time(us: float) -> str:
    """A time for people."""
    return f"{us / 1e3:.2f} ms" if us >= 1e3 else f"{us:.1f} µs"


def _op_table(found: dict[str, Any]) -> Table:
    """Time by op, over all workers and on the critical path."""
    table = Table("op", "tasks", "time", "share", "weights", "GB/s", "path", "share", pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for op in found["ops"]:
        table.add_row(
            *(Text(op["op"]), str(op["tasks"]), _time(op["work_us"]), f"{op['share']:.1%}"),
            *((size(op["bytes"]), f"{op['gbs']:.1f}") if op["gbs"] else ("", "")),
            *((_time(op["path_us"]), f"{op['path_us'] / found['step_us']:.1%}") if op["path_tasks"] else ("", "")),
        )
    return table


def _wait_table(found: dict[str, Any]) -> Table:
    """The longest waits for events."""
    table = Table("waited", "for", "tasks", "time", "share", pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    whole = found["step_us"] * len(found["workers"])
    for pair in found["waits"][:PAIRS]:
        names = (Text(pair["consumer"]), Text(pair["producer"]))
        table.add_row(*names, str(pair["tasks"]), _time(pair["us"]), f"{pair['us'] / whole:.1%}")
    return table
