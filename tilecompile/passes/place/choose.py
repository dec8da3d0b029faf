"""choose: the placement `auto`, by simulated time.

Every recipe is planned for a few of the model's layers and simulated at the given context. In the fastest one,
each family of operators is then placed otherwise, replicated where it was divided and divided where it was replicated,
and the change is kept if it is faster. So every choice has a simulated time. A device's workers are grouped into at
most WORKERS, which changes neither its bytes nor its dependencies, only how finely the tasks are cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tilecompile.cost.simulate.step import DEFAULT, simulate, simulator_of
from tilecompile.errors import InputError
from tilecompile.ir.graph import OpGraph
from tilecompile.ir.placement import PlacedGraph, Placement
from tilecompile.models.spec import LayerKind
from tilecompile.ops.base import REGISTRY
from tilecompile.passes.events import events
from tilecompile.passes.place.distribute import distribute
from tilecompile.passes.place.split_over_workers import split_over_workers
from tilecompile.passes.schedule import schedule
from tilecompile.passes.tile import tile
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.progress import Count, silent
from tilecompile.runtime.weight_formats import stack_bytes
from tilecompile.schedules import REDUCTIONS
from tilecompile.schedules.auto import REPLICATE, Choice, Recipe, alternatives, otherwise, place
from tilecompile.schedules.machine import Machine, OpCost

DEFAULT_CONTEXT = 4096
"""Positions that a placement is chosen for by default, if the engine holds as many."""

WORKERS = 12
"""Workers of a device in the search, at most."""

MOST_HOPS, LEAST_HOPS = 3.0, 0.25
"""Hops that replicating a family of operators can save, and that dividing it must save."""

LAYERS = 3
"""Fewest layers that the search plans."""

GAIN = 0.002
"""Fraction of the time that a change must save: less may be due to the assignment of tasks to workers alone."""


@dataclass(frozen=True)
class Chosen:
    """The choice, and what was tried: milliseconds of the `layers` that were planned, by choice, in order.

    `recipes` are the choices without exceptions.
    """

    choice: Choice
    tried: Mapping[str, float]
    recipes: tuple[str, ...]
    context: int
    layers: int

    @property
    def summary(self) -> str:
        """The choice and its reason in a line."""
        times = "; ".join(f"{name} {ms:.3g} ms" for name, ms in self.tried.items() if name in self.recipes)
        at = f"simulated, {self.layers} layers at context {self.context}"
        return f"placement auto is {self.choice}: {self.tried[str(self.choice)]:.3g} ms ({at}; {times})"

    def __str__(self) -> str:
        lines = [f"  {ms:8.4f} ms  {name}" for name, ms in self.tried.items()]
        return "\n".join([self.summary, *lines]) + "\n"


def choose(
    graph: OpGraph,
    layers: int,
    recipes: Mapping[str, Recipe],
    machine: Machine,
    devices: int,
    workers: int,
    context: int,
    progress: Count = silent,
) -> Chosen:
    """Searches the fastest placement, by a fused graph of `layers` layers of the model (`sample`).

    `workers` are those of one device; `progress` is called with the families of operators tried so far, and their
    number.

    InputError for a machine without costs, and where no recipe can use the devices.
    """
    coarse, few = coarser(machine, workers)
    tried: dict[str, float] = {}

    def ms(choice: Choice) -> float:
        if str(choice) not in tried:
            placement = place(graph, devices, choice, recipes)
            tried[str(choice)] = simulated_ms(graph, placement, coarse, few, context)
        return tried[str(choice)]

    wrong: list[str] = []
    candidates = []
    for recipe in recipes:
        for reduction in REDUCTIONS if devices > 2 else REDUCTIONS[:1]:
            try:
                ms(choice := Choice(recipe, reduction))
                candidates.append(choice)
            except ValueError as error:
                wrong.append(str(error))
    if not candidates:
        raise InputError(f"no placement can use {devices} devices: {'; '.join(dict.fromkeys(wrong))}")
    best = min(candidates, key=ms)
    families = alternatives(graph, place(graph, devices, best, recipes))
    families = {name: how for name, how in families.items() if may_pay(graph, name, how, machine, devices)}
    for i, (name, how) in enumerate(families.items()):
        progress(i, len(families))
        try:
            if ms(changed := otherwise(best, name, how)) < (1 - GAIN) * ms(best):
                best = changed
        except ValueError:
            continue  # this placement is infeasible
    return Chosen(best, tried, tuple(map(str, candidates)), context, layers)


def may_pay(graph: OpGraph, name: str, how: str, machine: Machine, devices: int) -> bool:
    """Whether placing a family otherwise could save time: compares the time to read its weights with that of a hop.

    Replicating can save a few hops at most, and dividing must save a good part of one.
    """
    costs = simulator_of(machine)
    size = max(sum(stack_bytes(w.shape, w.dtype) for w in n.weights) for n in graph.nodes if n.family == name)
    saved = size * (1 - 1 / devices) * (devices if machine.is_cpu else 1) / costs.read[-1][2]
    most, least = MOST_HOPS * costs.remote_event_ns, LEAST_HOPS * costs.remote_event_ns
    return saved <= most if how == REPLICATE else saved >= least


def sample(kinds: Sequence[LayerKind]) -> range:
    """The layers that the search plans: the shortest stretch that has every kind and can begin a model.

    Of equally short ones it is the last, which has the most layers of the later kinds. In a model with few layers it
    is all of them.
    """
    count = len(kinds)
    for length in range(min(LAYERS, count), count):
        for begin in range(count - length, -1, -1):
            if kinds[begin].independent and set(kinds[begin : begin + length]) == set(kinds):
                return range(begin, begin + length)
    return range(count)


def coarser(machine: Machine, workers: int) -> tuple[Machine, int]:
    """The machine with few workers a device, each as good as several, and their number."""
    few = min(WORKERS, workers)
    simulator = simulator_of(machine)
    if few == workers or machine.is_cpu:
        return machine, workers
    each = workers / few
    default = simulator.ops.get(DEFAULT, OpCost())
    # Tasks of other ops read whole operands, however many workers there are.
    divided = [op.name for op in REGISTRY.values() if op.divides_activations]
    wide = {op: simulator.ops.get(op, default) for op in divided}
    simulator = replace(
        simulator,
        ops={**simulator.ops, **{op: replace(c, element_ns=c.element_ns / each) for op, c in wide.items()}},
        read=tuple((size, single * each, total) for size, single, total in simulator.read),
        ring_bytes=round(simulator.ring_bytes * each),
        hint_bytes=round(simulator.hint_bytes * each),
    )
    return replace(machine, simulator=simulator), few


def simulated_ms(graph: OpGraph, placement: Placement, machine: Machine, workers: int, context: int) -> float:
    """Milliseconds of a step of a graph. ValueError for a placement that can't be made."""
    placed = split_over_workers(PlacedGraph(distribute(graph, placement), placement), workers)
    plan = events(tile(placed, workers, machine.layout))
    nodes = [grid.node for grid in plan.grids.grids]
    ops = sorted({n.op for n in nodes}, key=lambda op: (not REGISTRY[op].is_sink, op))
    kind_of = {(graph.program, n.name): ops.index(n.op) for n in nodes}
    kinds = [ops[0], *(f"k{i}_{op}" for i, op in enumerate(ops[1:], 1))]
    program = schedule([plan], workers, kind_of, kinds)
    facts = {"max_seq_len": context, "workers": workers * placement.devices, "devices": placement.devices}
    programs = [{"tokens": graph.tokens}]
    stated = {**facts, "kinds": program.kinds, "operators": program.operators, "programs": programs}
    manifest = Manifest(Path("auto"), stated)
    return simulate(manifest, program.tables, nodes, machine, context).ms
