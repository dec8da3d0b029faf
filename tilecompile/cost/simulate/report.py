"""Figures of a simulated step: its time, the fraction of the roof, time by cause, the critical path by op."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from tilecompile.cost.simulate.step import Simulated
from tilecompile.cost.step_time.path import critical_path
from tilecompile.cost.traffic import stated_reads
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.schedules.machine import Machine

ROUNDING = 1e-9
"""Shares of a step that are smaller than this are differences of equal sums."""

CAUSES = ("bytes", "compute", "start", "event", "exchange", "imbalance")
"""What a thread (on a GPU a worker) spends a step on: waiting for a task's bytes, computing after they have come, the
fixed cost of a task, seeing an event of the same device, pushing to other devices and seeing their events, and the
rest: waiting for producers that aren't done."""


def figures(found: Simulated, manifest: Manifest, machine: Machine, context: int) -> dict[str, Any]:
    """The figures of a simulated step, as JSON values.

    `step_ms` is the step; `causes` divides it, in the mean over all threads. `roof_fraction` is the time in which the
    machine reads the bytes that a step must read (`bytes`), over the step. `path` has for each op its tasks on the
    critical path, their time and the time before them, in milliseconds; both add up to the step.
    """
    tasks, loop = found.spans.tasks, found.loop
    must = stated_reads(manifest).at(context)
    simulator = machine.simulator
    return {
        "source": "simulated",
        "machine": machine.name,
        "calibrated": simulator.calibrated if simulator else None,
        "context": context,
        "devices": manifest.devices,
        "workers": manifest.workers,
        "threads": int(tasks.thread.max()) + 1,
        "tasks": len(tasks),
        "step_ms": found.ms,
        "bytes": must,
        "bytes_read": float(found.times.read.sum()),
        "roof_fraction": must / float(loop.total_rate.sum()) / found.spans.duration,
        "causes": dict(zip(CAUSES, _causes(found), strict=True)),
        "path": _path(found),
        "seconds": found.seconds,
    }


def _causes(found: Simulated) -> list[float]:
    """Milliseconds by cause, in the mean over threads."""
    spans, times, loop = found.spans, found.times, found.loop
    body = spans.end - loop.start_ns
    came = np.maximum(times.streamed, spans.begin)
    push = found.exchange
    free = np.where(times.before >= 0, times.free, 0)
    gap = spans.begin - free
    waited = times.latest >= 0
    late = np.where(waited, times.arrival - spans.end[times.latest], 0)
    late = np.where(times.arrival > free, np.minimum(late, gap), 0)
    remote = waited & (spans.tasks.device[times.latest] != spans.tasks.device)
    sums = [
        (came - spans.begin)[~push],
        (body - came)[~push],
        loop.start_ns[~push],
        late[~remote],
        np.append(late[remote], (spans.end - spans.begin)[push]),
    ]
    threads = int(spans.tasks.thread.max()) + 1
    parts = [float(part.sum()) / threads / 1e6 for part in sums]
    return [*parts, found.ms - sum(parts)]


def _path(found: Simulated) -> list[dict[str, Any]]:
    """The critical path by op, the longest first."""
    rows: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for link in critical_path(found.spans, found.gaps):
        row = rows[found.spans.tasks.ops[link.task]]
        row[0] += 1
        row[1] += (link.until - link.begin) / 1e6
        row[2] += link.gap / 1e6
    ordered = sorted(rows.items(), key=lambda item: -item[1][1] - item[1][2])
    return [{"op": op, "tasks": int(n), "work_ms": work, "before_ms": before} for op, (n, work, before) in ordered]


def without_noise(share: float) -> float:
    """A share of a step for people: 0 where it is no more than the rounding of sums."""
    return share if abs(share) > ROUNDING else 0.0


def print_figures(about: dict[str, Any]) -> None:
    """The figures as text on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    where = f"{about['machine']}, {about['devices']} device(s), {about['workers']} workers, {about['threads']} threads"
    console.print(
        Text(
            f"simulated: {about['step_ms']:.4g} ms a step at a context of {about['context']}, on {where}\n"
            f"{about['bytes'] / 1e6:.4g} MB to read, {100 * about['roof_fraction']:.0f} % of the machine's roof; "
            f"{about['tasks']} tasks simulated in {about['seconds']:.2f} s\n"
            f"costs: {about['calibrated'] or 'assumed (see the machine file), not calibrated'}"
        )
    )
    if made := about.get("speculation"):
        title = f"speculation, {made['curve']}: best with {made['best']} drafts, each {made['draft_ms']:.4g} ms"
        rounds = Table(
            "drafts", "tokens a round", "verify ms", "extend ms", "round ms", "ms a token", "× none", title=Text(title)
        )
        rounds.title_justify = "left"
        for row in made["depths"]:
            keys = ("tokens_a_round", "verify_ms", "extend_ms", "round_ms", "token_ms", "gain")
            rounds.add_row(str(row["drafts"]), *(f"{row[key]:.4g}" if row[key] else "" for key in keys))
        console.print(rounds)
    causes = Table("cause", "ms", "share", title="time of a thread", title_justify="left")
    for name, ms in about["causes"].items():
        share = without_noise(ms / about["step_ms"])
        causes.add_row(name, f"{share * about['step_ms']:.4g}", f"{100 * share:.1f} %")
    console.print(causes)
    path = Table("op", "tasks", "work ms", "before it ms", title="critical path", title_justify="left")
    for row in about["path"]:
        parts = (without_noise(row[key] / about["step_ms"]) * about["step_ms"] for key in ("work_ms", "before_ms"))
        path.add_row(row["op"], str(row["tasks"]), *(f"{ms:.4g}" for ms in parts))
    console.print(path)
