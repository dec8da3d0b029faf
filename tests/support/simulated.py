"""Helpers for tests of the simulator: an engine's plan, and a CPU with assumed costs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tilecompile.cost.simulate.work import Work, work_of
from tilecompile.cost.step_time.spans import tasks_of
from tilecompile.engine.graph_json import read_graph
from tilecompile.ir.node import OpNode
from tilecompile.runtime.folder.manifest import Manifest, read_manifest
from tilecompile.runtime.folder.tables import Tables, load_tables
from tilecompile.schedules.machine import Machine, OpCost, Simulator, load_machine

Plan = tuple[Manifest, Tables, list[OpNode]]
COSTS = Simulator(
    read=((1e5, 20.0, 40.0), (1e7, 10.0, 16.0)),
    task_ns=50.0,
    event_ns=100.0,
    remote_event_ns=300.0,
    poll_ns=10.0,
    ops={"default": OpCost(element_ns=0.3), "linear": OpCost(task_ns=20.0, byte_ns={"bf16": 0.02, "f32": 0.01})},
)


def plan_of(path: Path) -> Plan:
    manifest = read_manifest(path)
    return manifest, load_tables(manifest), read_graph(manifest).nodes


def cpu(**changes: Any) -> Machine:
    return dataclasses.replace(load_machine("cpu"), cores=2, simulator=dataclasses.replace(COSTS, **changes))


def work_at(plan: Plan, context: int, program: str = "decode", tokens: int | None = None) -> Work:
    """The work of a program's tasks, in a step of some tokens; without a number, of as many as it carries."""
    manifest, tables, nodes = plan
    number = [p["name"] for p in manifest.data["programs"]].index(program)
    tasks, carried = tasks_of(manifest, tables, 1, number), int(manifest.program(program)["tokens"])
    return work_of(tables, nodes, tasks.instruction, tasks.device, context, carried, tokens)
