"""Program tables taken apart, changed and put together again; and an oracle that decides whether a program is correct.

The oracle is independent of `verify` and slow: it builds the graph of all orders that the program enforces, closes it
transitively, and compares what instructions touch element by element.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilecompile.runtime import format as fmt

Tables = Mapping[str, np.ndarray]
SPANS = {"waits": "wait", "notifies": "notify", "regions": "region", "tape": "tape", "operands": "operand"}


@dataclass
class Ins:
    """An instruction with the rows that it refers to, as lists of tuples."""

    record: np.void
    waits: list[tuple[int, ...]]
    notifies: list[tuple[int, ...]]
    regions: list[tuple[int, ...]]
    tape: list[tuple[int, ...]]
    operands: list[tuple[int, ...]]

    @property
    def op(self) -> int:
        return int(self.record["op"])

    @property
    def tile(self) -> tuple[int, ...]:
        return tuple(map(int, self.record["tile"]))

    @property
    def commit(self) -> bool:
        return int(self.record["kind"]) == fmt.COMMIT_KIND


@dataclass
class Stream:
    """A stream's fields but its slice, and its instructions."""

    program: int
    device: int
    worker: int
    agent: int
    instructions: list[Ins] = field(default_factory=list)


@dataclass
class Parts:
    """Tables taken apart."""

    streams: list[Stream]
    events: list[tuple[int, ...]]
    buffers: list[tuple[int, ...]]
    weights: list[tuple[int, ...]] = field(default_factory=list)
    tiles: list[tuple[int, ...]] = field(default_factory=list)

    def of(self, program: int) -> list[Stream]:
        """The streams of one program."""
        return [s for s in self.streams if s.program == program]

    def instructions(self, program: int | None = None) -> list[Ins]:
        """All instructions, of one program or of all."""
        return [i for s in self.streams if program in (None, s.program) for i in s.instructions]


def take_apart(tables: Tables) -> Parts:
    """The tables as objects that are easy to change."""
    streams = []
    for s in tables["streams"]:
        stream = Stream(*(int(s[f]) for f in ("program", "device", "worker", "agent")))
        for record in tables["instructions"][s["begin"] : s["end"]]:
            rows = {}
            for name, prefix in SPANS.items():
                begin, count = int(record[f"{prefix}_begin"]), int(record[f"{prefix}_count"])
                rows[name] = tables[name][begin : begin + count].tolist()
            stream.instructions.append(Ins(record.copy(), **rows))
        streams.append(stream)
    return Parts(streams, *(tables[name].tolist() for name in ("events", "buffers", "weights", "tiles")))


def put_together(parts: Parts) -> dict[str, np.ndarray]:
    """Tables of the parts."""
    rows: dict[str, list[Any]] = defaultdict(list)
    records = []
    for s in parts.streams:
        begin = len(records)
        for ins in s.instructions:
            record = ins.record.copy()
            for name, prefix in SPANS.items():
                record[f"{prefix}_begin"], record[f"{prefix}_count"] = len(rows[name]), len(getattr(ins, name))
                rows[name] += getattr(ins, name)
            records.append(record)
        rows["streams"].append((s.program, s.device, s.worker, s.agent, begin, len(records)))
    rows |= {"events": parts.events, "buffers": parts.buffers, "weights": parts.weights, "tiles": parts.tiles}
    tables = {n: np.array(rows[n], r.dtype) for n, r in fmt.TABLES.items() if n != "instructions"}
    return tables | {"instructions": np.array(records, fmt.INSTRUCTION.dtype)}


def changed(parts: Parts) -> Parts:
    """A copy to change."""
    return copy.deepcopy(parts)


def orders(streams: list[Stream]) -> dict[int, set[int]] | None:
    """For every instruction (by id), those that are done before it at every timing; None if some can never run."""
    makers: dict[int, list[Ins]] = defaultdict(list)
    for s in streams:
        for ins in s.instructions:
            for event, _ in ins.notifies:
                makers[event].append(ins)
    needs: dict[int, set[int]] = {}
    for s in streams:
        for k, ins in enumerate(s.instructions):
            needs[id(ins)] = {id(p) for event, _ in ins.waits for p in makers[event]}
            needs[id(ins)] |= {id(s.instructions[k - 1])} if k else set()
    before: dict[int, set[int]] = {}
    todo = dict(needs)
    while todo:
        ready = [i for i, n in todo.items() if all(p in before for p in n)]
        if not ready:
            return None
        for i in ready:
            before[i] = set().union(*({p} | before[p] for p in todo.pop(i)))
    return before


def mask(region: tuple[int, ...], shape: tuple[int, int]) -> np.ndarray:
    """The elements of a region, bool [rows, cols] of its buffer."""
    out = np.zeros(shape, bool)
    out[region[2] : region[3], region[4] : region[5]] = True
    return out


def correct(parts: Parts, program: int) -> bool:
    """Whether the program can't deadlock, race, write to weights, or read what it hasn't written, and ends in its one
    commit."""
    streams = parts.of(program)
    instructions = parts.instructions(program)
    notified: dict[int, int] = defaultdict(int)
    for ins in instructions:
        for event, _ in ins.notifies:
            notified[event] += 1
    for ins in instructions:
        if any(notified[event] != count or parts.events[event][2] != count for event, count in ins.waits):
            return False
    before = orders(streams)
    commits = [ins for ins in instructions if ins.commit]
    if before is None or len(commits) != 1 or len(before[id(commits[0])]) != len(instructions) - 1:
        return False
    touched: dict[int, list[tuple[Ins, int, np.ndarray]]] = defaultdict(list)
    for ins in instructions:
        for r in ins.regions:
            touched[r[0]].append((ins, r[1], mask(r, parts.buffers[r[0]][4:6])))  # type: ignore[arg-type]
    for buffer, accesses in touched.items():
        arena = fmt.ARENAS[parts.buffers[buffer][1]]
        scratch = arena == "activation"
        if arena == "weight" and any(mode == fmt.WRITE for _, mode, _ in accesses):
            return False
        for ins, mode, elements in accesses:
            written = np.zeros_like(elements)
            for other, how, others in accesses:
                if other is ins or how != fmt.WRITE:
                    continue
                if id(other) in before[id(ins)]:
                    written |= others
                elif id(ins) not in before[id(other)] and (elements & others).any():
                    return False
            if scratch and mode == fmt.READ and (elements & ~written).any():
                return False
    return True
