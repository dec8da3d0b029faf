"""simulate --sweep: placements, contexts, tile granularities and ring depths side by side, as a table and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilecompile.cost.simulate.report import CAUSES, figures, without_noise
from tilecompile.cost.simulate.step import simulator_of
from tilecompile.errors import InputError
from tilecompile.measure.simulated.plans import Plan, compiled
from tilecompile.models.registry import config_of
from tilecompile.runtime.progress import Progress
from tilecompile.schedules import PLACEMENTS
from tilecompile.schedules.machine import Machine

if TYPE_CHECKING:
    from tilecompile.options import CompileOptions

CONTEXTS = (1024, 16384, 131072)
"""Contexts of a sweep, as far as the model has positions."""
GRANULARITIES = (1, 2)
"""Tasks a worker that an operator is cut into; all else is swept at the first one."""
RINGS = (0.25, 0.5, 1.0)
"""Depths of the ring as parts of the machine's; all else is swept at the last one."""

PICTURES = (".png", ".svg", ".pdf")

Row = dict[str, Any]


def sweep(options: CompileOptions, machine: Machine, contexts: Sequence[int], progress: Progress) -> list[Row]:
    """Simulates a model's plans on a machine: figures as `simulate` has them, with what was chosen.

    Every placement that the machine's devices allow is simulated at each context (by default CONTEXTS, as far as the
    model has positions); at the first context also with finer tasks, and with the ring cut down where the machine has
    one. InputError as `compile_model` and `simulate` have it.
    """
    limit = config_of(options.model).max_position_embeddings
    contexts = contexts or [c for c in CONTEXTS if c <= limit] or [limit]
    placements = [p for p in PLACEMENTS if (p == PLACEMENTS[0]) == (machine.devices == 1)]
    if options.placement is not None:
        placements = [options.placement]
    rows: list[Row] = []
    plans = [(placement, granularity) for placement in placements for granularity in GRANULARITIES]
    for number, (placement, granularity) in enumerate(plans):

        def within(stage: str, done: int, total: int, number: int = number) -> None:
            progress(stage, number, len(plans))

        how = replace(options, placement=placement, granularity=granularity)
        with compiled(how, max(contexts), within) as plan:
            within("simulate", 0, 1)
            first = granularity == GRANULARITIES[0]
            for context in contexts if first else contexts[:1]:
                for ring, on in _rings(machine) if first and context == contexts[0] else [(None, machine)]:
                    rows.append({"placement": placement, "granularity": granularity, **_row(plan, on, context, ring)})
    return rows


def _rings(machine: Machine) -> Iterator[tuple[int | None, Machine]]:
    """The machine with less of its ring and with all of it, which counts as None."""
    costs = simulator_of(machine)
    for part in RINGS:
        if part == RINGS[-1]:
            yield None, machine
        elif costs.ring_bytes:
            size = int(costs.ring_bytes * part)
            yield size, replace(machine, simulator=replace(costs, ring_bytes=size))


def _row(plan: Plan, machine: Machine, context: int, ring: int | None) -> Row:
    whole = simulator_of(machine).ring_bytes
    found = figures(plan.step(machine, context), plan.manifest, machine, context)
    kept = ("context", "tasks", "step_ms", "roof_fraction", "causes")
    return {"ring_bytes": whole if ring is None else ring, **{name: found[name] for name in kept}}


def print_sweep(rows: Sequence[Row]) -> None:
    """The sweep as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table("placement", "context", "granularity", "ring kB", "ms", "of roof", *CAUSES)
    for row in rows:
        sizes = (str(row["context"]), str(row["granularity"]), f"{row['ring_bytes'] / 1e3:.0f}")
        causes = (f"{without_noise(row['causes'][name] / row['step_ms']) * row['step_ms']:.3g}" for name in CAUSES)
        table.add_row(row["placement"], *sizes, f"{row['step_ms']:.4g}", f"{row['roof_fraction']:.3f}", *causes)
    Console().print(table)


def check_picture(path: Path) -> None:
    """InputError where no picture can be drawn: without matplotlib, or for another kind of file."""
    if path.suffix not in PICTURES:
        raise InputError(f"--output {path}: the picture of a sweep is one of {', '.join(PICTURES)}")
    if find_spec("matplotlib") is None:
        raise InputError("a picture needs matplotlib: pip install 'tilecompile[plot]'")


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """The sweep as a picture: times by context, and by granularity and ring. InputError if it can't be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    by_context, by_choice = figure.subplots(1, 2)
    context, ring = rows[0]["context"], max(row["ring_bytes"] for row in rows)
    for placement in dict.fromkeys(row["placement"] for row in rows):
        mine = [row for row in rows if row["placement"] == placement]
        usual = [r for r in mine if r["granularity"] == GRANULARITIES[0] and r["ring_bytes"] == ring]
        by_context.plot([r["context"] for r in usual], [r["step_ms"] for r in usual], "o-", label=placement)
        here = [r for r in mine if r["context"] == context]
        by_choice.plot([_label(r, ring) for r in here], [r["step_ms"] for r in here], "o", label=placement)
    by_context.set(xscale="log", xlabel="context, positions", ylabel="ms a step, simulated", title="placements")
    contexts = sorted({row["context"] for row in rows})
    by_context.set_xticks(contexts, [f"{c:,}" for c in contexts])
    by_context.minorticks_off()
    by_choice.set(xlabel=f"tasks a worker, ring (context {context})", title="granularity and ring depth")
    for axes in (by_context, by_choice):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    try:
        figure.savefig(path)
    except OSError as error:
        raise InputError(f"--output {path}: can't be written: {error.strerror or error}") from None


def _label(row: Row, ring: int) -> str:
    return f"{row['granularity']}, {row['ring_bytes'] / 1e3:.0f} kB" if ring else str(row["granularity"])
