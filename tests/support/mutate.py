"""Mutations of compiled engines' tables: each breaks one edge, order, place in memory or weight run, of a chosen kind.

An edge's kind says why the second instruction comes after the first: it reads what the first wrote (`raw`), overwrites
it (`waw`), overwrites what the first read (`war`), or, where they share no memory, only for an order (`order`: with the
sink, or for the sake of other edges).
"""

from __future__ import annotations

import functools
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from support.mutated_models import graphs
from support.small import scheduled
from support.table_tools import Ins, Parts, changed, take_apart
from tilecompile.runtime import format as fmt

KINDS = ("raw", "waw", "war", "order")
Place = tuple[int, int]
"""An instruction: number of its stream, place in it."""


@dataclass(frozen=True)
class Engine:
    """Tables of a compiled model, and its edges by kind: of instructions of one stream, and through events."""

    parts: Parts
    local: dict[str, list[tuple[Place, Place]]]
    remote: dict[str, list[tuple[Place, Place, int]]]


@functools.cache
def engine(model: str, workers: int) -> Engine:
    """The tables of a model, compiled as far as the schedule."""
    parts = take_apart(scheduled(graphs(model), workers, fused=True).tables)
    local: dict[str, list[tuple[Place, Place]]] = defaultdict(list)
    remote: dict[str, list[tuple[Place, Place, int]]] = defaultdict(list)
    for program in {s.program for s in parts.streams}:
        places = [
            (n, k) for n, s in enumerate(parts.streams) if s.program == program for k in range(len(s.instructions))
        ]
        ins = {p: parts.streams[p[0]].instructions[p[1]] for p in places}
        for a in places:
            notified = {e for e, _ in ins[a].notifies}
            for b in places:
                events = [e for e, _ in ins[b].waits if e in notified]
                if a == b or not (events or (a[0] == b[0] and a[1] < b[1])):
                    continue
                kind = kind_of(ins[a], ins[b])
                if events:
                    remote[kind].append((a, b, events[0]))
                elif kind != "order":
                    local[kind].append((a, b))
    return Engine(parts, local, remote)


def kind_of(a: Ins, b: Ins) -> str:
    """The kind of an edge from one instruction to another; reads of new values count before overwriting."""
    found = set()
    for r in a.regions:
        for q in b.regions:
            if r[0] == q[0] and r[2] < q[3] and q[2] < r[3] and r[4] < q[5] and q[4] < r[5]:
                found.add({(1, 0): "raw", (1, 1): "waw", (0, 1): "war", (0, 0): "order"}[r[1], q[1]])
    return next(k for k in (*KINDS, "order") if k in found or k == "order")


Mutation = Callable[[Engine, Parts, str, random.Random], bool]
"""Changes the parts (a copy of the engine's); False where the engine has nothing of the kind."""


def at(parts: Parts, place: Place) -> Ins:
    return parts.streams[place[0]].instructions[place[1]]


def recount(parts: Parts, events: set[int]) -> None:
    """Makes counts of events and waits what is notified; waits for nothing are dropped."""
    for event in events:
        made = sum(e == event for i in parts.instructions() for e, _ in i.notifies)
        program, device, _, tensor = parts.events[event]
        parts.events[event] = (program, device, made, tensor)
        for i in parts.instructions():
            i.waits = [(e, made if e == event else c) for e, c in i.waits if e != event or made]


def wait_dropped(engine: Engine, parts: Parts, kind: str, rng: random.Random) -> bool:
    if engine.remote[kind]:
        _, b, event = rng.choice(engine.remote[kind])
        at(parts, b).waits = [w for w in at(parts, b).waits if w[0] != event]
    return bool(engine.remote[kind])


def edge_dropped(engine: Engine, parts: Parts, kind: str, rng: random.Random) -> bool:
    """One producer less, and thresholds that agree: only the order is lost."""
    if engine.remote[kind]:
        a, _, event = rng.choice(engine.remote[kind])
        at(parts, a).notifies = [n for n in at(parts, a).notifies if n[0] != event]
        recount(parts, {event})
    return bool(engine.remote[kind])


def threshold(step: int) -> Mutation:
    def change(engine: Engine, parts: Parts, kind: str, rng: random.Random) -> bool:
        """Of one wait, or of the event and all its waits."""
        if not engine.remote[kind]:
            return False
        _, b, event = rng.choice(engine.remote[kind])
        program, device, count, tensor = parts.events[event]
        consumers = [at(parts, b)]
        if rng.random() < 0.5:
            parts.events[event] = (program, device, count + step, tensor)
            consumers = parts.instructions()
        for i in consumers:
            i.waits = [(e, c + step if e == event else c) for e, c in i.waits]
        return True

    return change


def swapped(engine: Engine, parts: Parts, kind: str, rng: random.Random) -> bool:
    """Two instructions of one stream, of which the second needs the first or the first one's events."""
    pairs = engine.local[kind]
    if kind == "order":
        pairs = [((n, k), (n, k + 1)) for n, s in enumerate(parts.streams) for k in range(len(s.instructions) - 1)]
    if pairs:
        (n, k), (_, m) = rng.choice(pairs)
        members = parts.streams[n].instructions
        members[k], members[m] = members[m], members[k]
    return bool(pairs)


def moved(engine: Engine, parts: Parts, kind: str, rng: random.Random) -> bool:
    """To another worker, at its operator's place in the order."""
    pairs = [(a, b) for a, b, _ in engine.remote[kind]] if kind == "order" else engine.local[kind]
    if pairs:
        n, k = rng.choice(rng.choice(pairs))
        ins = parts.streams[n].instructions.pop(k)
        others = [s for s in parts.streams if s.program == parts.streams[n].program and s is not parts.streams[n]]
        to = rng.choice(others).instructions
        to.insert(sum(i.op < ins.op for i in to), ins)
    return bool(pairs)


def index_shifted(engine: Engine, parts: Parts, kind: str, rng: random.Random) -> bool:
    """Producers notify the next element of an event tensor: one of them, all, or all with counts that agree."""
    if not engine.remote[kind]:
        return False
    a, _, event = rng.choice(engine.remote[kind])
    order = elements(parts, event)
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    how = rng.randrange(3)
    for i in [at(parts, a)] if how == 0 else parts.instructions():
        i.notifies = [(following.get(e, e), scope) for e, scope in i.notifies]
    if how == 2:
        recount(parts, set(order))
    return True


def elements(parts: Parts, event: int) -> list[int]:
    """The counters of an event's tensor; of all tensors of its program, where it is the only one."""
    program, _, _, tensor = parts.events[event]
    mine = [e for e, row in enumerate(parts.events) if row[0] == program]
    found = [e for e in mine if parts.events[e][3] == tensor]
    return found if len(found) > 1 else mine


def buffers_aliased(engine: Engine, parts: Parts, kind: str, rng: random.Random) -> bool:
    """A buffer is placed on another one of its arena; harmless for scratch memory of two programs."""
    a = rng.randrange(len(parts.buffers))
    same = [b for b, row in enumerate(parts.buffers) if b != a and row[:2] == parts.buffers[a][:2]]
    parts.buffers[a] = (*parts.buffers[a][:2], parts.buffers[rng.choice(same)][2], *parts.buffers[a][3:])
    return True


def buffers_merged(engine: Engine, parts: Parts, kind: str, rng: random.Random) -> bool:
    """A program uses one scratch buffer in the place of another that is no larger."""
    scratch = [b for b, row in enumerate(parts.buffers) if fmt.ARENAS[row[1]] == "activation"]
    pairs = [(a, b) for a in scratch for b in scratch if a != b and fits(parts.buffers[a], parts.buffers[b])]
    a, b = rng.choice(pairs)
    for i in parts.instructions():
        i.regions = [(b, *r[1:]) if r[0] == a else r for r in i.regions]
        i.operands = [(b, *o[1:]) if o[0] == a else o for o in i.operands]
    return True


def fits(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return a[4] <= b[4] and a[5] <= b[5]


def tape(how: Callable[[list[Any], int], object]) -> Mutation:
    def change(engine: Engine, parts: Parts, kind: str, rng: random.Random) -> bool:
        found = rng.choice([i for i in parts.instructions() if i.tape])
        how(found.tape, rng.randrange(len(found.tape)))
        return True

    return change


def war_removed(engine: Engine, parts: Parts, kind: str, rng: random.Random) -> bool:
    """The reader no longer counts, however it was ordered before the overwriting: by an event, or in one stream."""
    if engine.remote["war"] and rng.random() < 0.7:
        return edge_dropped(engine, parts, "war", rng)
    return swapped(engine, parts, "war", rng)


OF_EDGES: dict[str, Mutation] = {
    "wait dropped": wait_dropped,
    "edge dropped": edge_dropped,
    "threshold raised": threshold(1),
    "threshold lowered": threshold(-1),
    "swapped": swapped,
    "moved": moved,
    "index map shifted": index_shifted,
}
OTHERS: dict[str, Mutation] = {
    "write-after-read edge removed": war_removed,
    "buffers aliased": buffers_aliased,
    "buffers merged": buffers_merged,
    "tile dropped": tape(lambda runs, k: runs.pop(k)),
    "tile doubled": tape(lambda runs, k: runs.append(runs[k])),
}
CASES = [(name, kind) for name in OF_EDGES for kind in KINDS] + [(name, "") for name in OTHERS]
"""Every mutation, by the kind of edge where it is of one."""


def mutated(model: str, workers: int, name: str, kind: str, seed: int) -> Parts | None:
    """The tables of an engine with one mutation; None where the engine has nothing to mutate in that way."""
    found = engine(model, workers)
    parts = changed(found.parts)
    mutation = (OF_EDGES | OTHERS)[name]
    return parts if mutation(found, parts, kind, random.Random(seed)) else None
