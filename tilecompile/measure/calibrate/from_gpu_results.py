"""calibrate --from: a GPU machine's description with what tests/gpu/run.py measured on such a GPU.

Measured are how fast a device's memory is read, how long an event takes to be seen on the same device, and how long a
task takes to begin. All else in the description stays as it is: rates from the second-level cache, of a worker
alone, costs of the ops, links.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from tilecompile.errors import InputError
from tilecompile.schedules.machine import Machine, Simulator, load_machine, machine_names

BYTES, EVENT, START = NUMBERS = ("read_bandwidth", "event_latency_ns", "task_start_ns")
"""Keys of the results' `speed` that are numbers: bytes a second, then nanoseconds."""

WORDS = ("gpu", "date", "command")
"""Keys of `speed` that say on what, when and with what it was measured."""

LEAST_PART = 0.25
"""Fraction of the data sheet's bandwidth below which a measurement can't be of the highest read rate."""

LEAST_NS, MOST_NS = 20.0, 50_000.0
"""Plausible nanoseconds: from a trip to the second-level cache to more than one event or task start can take."""


def machine_from(results: Path, machine: str | None = None, name: str | None = None) -> Machine:
    """The description of `machine` (a name or a file; by default the one with one GPU like that of the results), named
    `name`, with what the results say. InputError in one line for results that are not whole, absurd, or of another GPU.
    """
    speed = read_speed(results)
    base = load_machine(machine or _like(results, speed["gpu"]))
    if base.is_cpu or base.simulator is None or base.bandwidth_gbs is None:
        raise InputError(f"--machine {base.name}: want one with GPUs, a simulator and bandwidth_gbs")
    kind = _kind(base.name)
    if kind is not None and not _is(kind, speed["gpu"]):
        raise InputError(f"{results}: speed.gpu is {speed['gpu']!r}, --machine {base.name} has another GPU")
    gbs = speed[BYTES] / 1e9
    if not LEAST_PART * base.bandwidth_gbs <= gbs <= base.bandwidth_gbs:
        raise InputError(
            f"{results}: speed.{BYTES} is {speed[BYTES]:.4g} bytes a second, want {LEAST_PART:g} to 1 times the "
            f"{base.bandwidth_gbs * 1e9:.4g} of {base.name}'s data sheet"
        )
    return replace(base, name=name or base.name, simulator=_measured(base.simulator, speed, gbs))


def read_speed(results: Path) -> dict[str, Any]:
    """The `speed` of a results file, with all keys that are needed. InputError if one is missing or no such value."""
    try:
        data = json.loads(results.read_bytes())
    except OSError as error:
        raise InputError(f"{results}: can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{results}: is not valid JSON: {error}") from error
    speed = data.get("speed") if isinstance(data, dict) else None
    if not isinstance(speed, dict):
        raise InputError(f"{results}: has no object 'speed', want what tests/gpu/run.py writes with --json")
    missing = [key for key in NUMBERS + WORDS if speed.get(key) is None]
    if missing:
        raise InputError(f"{results}: speed lacks {', '.join(missing)}: that part of the script didn't come to its end")
    for key in WORDS:
        if not isinstance(speed[key], str) or not speed[key]:
            raise InputError(f"{results}: speed.{key} is {json.dumps(speed[key])[:80]}, want words")
    for key in NUMBERS:
        value = speed[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InputError(f"{results}: speed.{key} is {json.dumps(value)[:80]}, want a number")
        if key != BYTES and not LEAST_NS <= value <= MOST_NS:
            raise InputError(f"{results}: speed.{key} is {value:g}, want {LEAST_NS:g} to {MOST_NS:g}")
    return speed


def _kind(machine: str) -> str | None:
    """The GPU of a machine that comes with the package, as its name begins: "h200" of "h200x8"."""
    return machine.partition("x")[0] if machine in machine_names() else None


def _is(kind: str, gpu: str) -> bool:
    """Whether the name of a GPU is of a kind: a GH200 is no H200."""
    return re.search(rf"\b{re.escape(kind)}\b", gpu, re.IGNORECASE) is not None


def _like(results: Path, gpu: str) -> str:
    """The machine with one GPU of that name."""
    singles = [name for name in machine_names() if not (one := load_machine(name)).is_cpu and one.devices == 1]
    found = [name for name in singles if _is(name, gpu)]
    if len(found) != 1:
        raise InputError(f"{results}: speed.gpu is {gpu!r}, which is none of {', '.join(singles)}: give --machine")
    return found[0]


def _measured(simulator: Simulator, speed: dict[str, Any], gbs: float) -> Simulator:
    *cached, (size, alone, _) = simulator.read
    event, start = float(speed[EVENT]), float(speed[START])
    remote = event + max(0.0, simulator.remote_event_ns - simulator.event_ns)
    when = f"measured {speed['date']} on {speed['gpu']} with: {speed['command']}"
    old = simulator.sources
    sources = {
        **old,
        "read": f"memory's rate of a device: {when}. The rest: {old.get('read', 'assumed')}",
        "task_ns": when,
        "event_ns": when,
        "remote_event_ns": f"event_ns, and as much more as before. {old.get('remote_event_ns', 'assumed')}",
    }
    return replace(
        simulator,
        read=(*cached, (size, alone, gbs)),
        task_ns=start,
        event_ns=event,
        remote_event_ns=remote,
        calibrated=f"{when} (memory's rate, event_ns, task_ns; the rest is assumed, see sources)",
        sources=sources,
    )
