"""Machine descriptions: what an engine is compiled for and simulated on, from TOML files.

A file states facts and, in `[simulator]`, what a step costs on the machine; `[sources]` says where the numbers come
from. Keys are the fields of `Machine`, `Simulator` and `OpCost`. Names end in the unit; gbs are 10⁹ bytes a second.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from tilecompile.errors import InputError
from tilecompile.runtime.machine import usable_cores
from tilecompile.runtime.validate import TOML, Choice, MapOf, Number, Schema, Table, mismatch
from tilecompile.runtime.weight_formats import FORMATS
from tilecompile.schedules.this_machine import cache_bytes, memory_bytes

FOLDER = Path(__file__).parent / "machines"
FAMILIES = ("cpu", "sm_90a", "sm_100a")


@dataclass(frozen=True)
class OpCost:
    """What a task of an op costs, in nanoseconds, apart from waiting for memory.

    `task_ns` a task, `run_ns` a weight run, `product_ns` a product with a value of a cache, `element_ns` an activation
    that it reads or writes, `byte_ns` a byte of its weights, by their type.
    """

    task_ns: float = 0.0
    run_ns: float = 0.0
    product_ns: float = 0.0
    element_ns: float = 0.0
    byte_ns: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Simulator:
    """What a step costs on a machine: measured where `calibrated` says when and with what, else assumed.

    `read`: (working set in bytes, gbs of a worker alone, gbs of all workers of a device), by growing working set.
    `task_ns`: start of a task. `event_ns`: from a notification to the start of a task that waited for it on another
    worker; `remote_event_ns` on another device. `ring_bytes`: how far a worker's loader runs ahead of its bodies, 0
    without a loader. `hint_bytes`: what is prefetched of the next run while a worker waits. `poll_ns`: one
    poll by a thread of a worker that still waits. `ops`: costs by op; "default" for those that aren't named.
    """

    read: tuple[tuple[float, float, float], ...]
    task_ns: float
    event_ns: float
    remote_event_ns: float
    ring_bytes: int = 0
    hint_bytes: int = 0
    poll_ns: float = 0.0
    ops: Mapping[str, OpCost] = field(default_factory=dict)
    calibrated: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """A machine; what is None isn't known, or in the case of `workers` (of a device) is chosen when compiling.

    `shared_memory_bytes` and `registers` (of 32 bits) are a worker's. Memory, bandwidth and link are a device's; a link
    has `link_gbs` in each direction. `cores` and `cache_bytes` (first level to last) are for CPUs, whose devices are
    virtual: they share one memory.
    """

    name: str
    target: str
    devices: int
    workers: int | None = None
    shared_memory_bytes: int | None = None
    registers: int | None = None
    memory_bytes: int | None = None
    bandwidth_gbs: float | None = None
    link_gbs: float | None = None
    link_latency_ns: float | None = None
    weight_types: tuple[str, ...] = ("f32", "bf16")
    cores: int | None = None
    cache_bytes: tuple[int, ...] = ()
    simulator: Simulator | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_cpu(self) -> bool:
        """Whether its devices are virtual devices of one CPU."""
        return self.target == "cpu"

    @property
    def layout(self) -> str:
        """The layout of the panels of its weight tiles (format.LAYOUTS)."""
        return "rows" if self.is_cpu else "fragments"


_NS, _WHOLE, _ABOVE = Number(), Number(1, whole=True), Number(above=True)
_OP: dict[str, Schema] = {
    **dict.fromkeys(("task_ns", "run_ns", "product_ns", "element_ns"), _NS),
    "byte_ns": MapOf(_NS, FORMATS),
}
_SIMULATOR: dict[str, Schema] = {
    "read": [[_ABOVE, _ABOVE, _ABOVE]],
    **dict.fromkeys(("task_ns", "event_ns", "remote_event_ns"), _NS),
    **dict.fromkeys(("ring_bytes", "hint_bytes"), Number(whole=True)),
    "poll_ns": _NS,
    "ops": MapOf(Table(_OP)),
    "calibrated": str,
    "sources": MapOf(str),
}
MACHINE = Table(
    {
        "name": str,
        "target": Choice(FAMILIES),
        "devices": _WHOLE,
        **dict.fromkeys(("workers", "shared_memory_bytes", "registers", "memory_bytes"), _WHOLE),
        **dict.fromkeys(("bandwidth_gbs", "link_gbs"), _ABOVE),
        "link_latency_ns": _NS,
        "weight_types": [Choice(FORMATS)],
        "cores": _WHOLE,
        "cache_bytes": [_WHOLE],
        "simulator": Table(_SIMULATOR, ("read", "task_ns", "event_ns", "remote_event_ns")),
        "sources": MapOf(str),
    },
    ("name", "target", "devices"),
)
"""The keys of a machine's file."""


def machine_names() -> list[str]:
    """Names of the machines that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_machine(name_or_path: str) -> Machine:
    """A machine by name, or from a TOML file. InputError that names the file and the key if it can't be used.

    A CPU's cores, memory and caches are read off this machine where its file doesn't state them.
    """
    path = FOLDER / f"{name_or_path}.toml"
    if name_or_path not in machine_names():
        path = Path(name_or_path)
        if not path.is_file():
            raise InputError(
                f"machine {name_or_path!r} is unknown and no file; there are: {', '.join(machine_names())}"
            )
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not valid TOML: {error}") from error
    wrong = mismatch(values, MACHINE, notation=TOML) or _disagreement(values)
    if wrong:
        raise InputError(f"{path}: {wrong}")
    return _machine(values)


def _disagreement(values: dict[str, Any]) -> str | None:
    """The first fault between values that have the right kinds each; None if there is none."""
    read = values.get("simulator", {}).get("read", [[1]])
    if not read:
        return "simulator.read is [], want at least one entry"
    for a, b in pairwise(read):
        if a[0] >= b[0]:
            return f"simulator.read has a working set of {b[0]} bytes after one of {a[0]}, want growing ones"
    if values["devices"] > 1 and values["target"] != "cpu":
        missing = [key for key in ("link_gbs", "link_latency_ns") if key not in values]
        if missing:
            return f"missing key {', '.join(missing)}, which {values['devices']} devices need"
    return None


def _machine(values: dict[str, Any]) -> Machine:
    values = dict(values)
    simulator = values.pop("simulator", None)
    for key in ("weight_types", "cache_bytes"):
        if key in values:
            values[key] = tuple(values[key])
    if simulator is not None:
        read = tuple(tuple(map(float, row)) for row in simulator["read"])
        ops = {name: OpCost(**cost) for name, cost in simulator.get("ops", {}).items()}
        values["simulator"] = Simulator(**{**simulator, "read": read, "ops": ops})
    machine = Machine(**values)
    if not machine.is_cpu:
        return machine
    return replace(
        machine,
        cores=machine.cores or usable_cores(),
        memory_bytes=machine.memory_bytes or memory_bytes(),
        cache_bytes=machine.cache_bytes or cache_bytes(),
    )
