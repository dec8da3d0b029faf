"""Random step programs for the GPU's loop, as the tables of an engine."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilecompile.runtime import format as fmt

PLAIN, DISPATCH, NEXT = 1, 2, 3
EXPERTS, SLOTS, VOCAB = 3, 3, 5


@dataclass
class Task:
    """One instruction while a program is made."""

    worker: int
    kind: int
    flags: int
    reads: list[tuple[int, int, int, int, int]]
    writes: list[tuple[int, int, int, int, int]]
    tape: list[tuple[int, int, int, int]]
    slots: int = 0  # the buffer of its experts
    waits: list[tuple[int, int]] = field(default_factory=list)
    notifies: list[int] = field(default_factory=list)


IDS, POSITION, SAMPLED, LOGITS = range(4)


class Case:
    """A random program: tables, memory, devices, blocks."""

    def __init__(self, rng: random.Random, most: int = 20) -> None:
        self.rng = rng
        self.devices, self.blocks = rng.choice([(1, 8), (1, 8), (2, 4), (2, 4), (2, 8)])
        self.buffers: list[tuple[str, int, int]] = [("i32", 1, 1), ("i32", 1, 1), ("i32", 1, 1), ("f32", 1, VOCAB)]
        self.plain = [self.buffer("f32", rng.randint(1, 3), rng.randint(1, 4)) for _ in range(rng.randint(2, 6))]
        self.events: list[tuple[int, int]] = []
        self.tasks: list[Task] = []
        self.pool = 0
        self.dispatched: list[tuple[int, list[int]]] = []
        for _ in range(rng.randint(3, most)):
            self.add()
        self.tasks.append(Task(self.worker(), NEXT, 0, self.boxes(2), [(SAMPLED, 0, 1, 0, 1)], []))
        logits = [(LOGITS, 0, 1, 0, VOCAB)]
        self.tasks.append(Task(self.worker(), PLAIN, fmt.GATED, self.boxes(2), logits, self.runs(1)))
        self.sink = Task(self.worker(), fmt.COMMIT_KIND, 0, [(SAMPLED, 0, 1, 0, 1), *logits], [], [])
        self.tasks.append(self.sink)
        self.order()

    def worker(self) -> int:
        return self.rng.randrange(self.devices * self.blocks)

    def buffer(self, dtype: str, rows: int, cols: int) -> int:
        self.buffers.append((dtype, rows, cols))
        return len(self.buffers) - 1

    def box(self, buffer: int) -> tuple[int, int, int, int, int]:
        rng, (_, rows, cols) = self.rng, self.buffers[buffer]
        r, c = rng.randrange(rows), rng.randrange(cols)
        return buffer, r, rng.randint(r + 1, rows), c, rng.randint(c + 1, cols)

    def boxes(self, most: int, write: bool = False, io: bool = True) -> list[tuple[int, int, int, int, int]]:
        which = self.plain if write or not io else [*self.plain, IDS, POSITION]
        return [self.box(b) for b in self.rng.sample(which, self.rng.randint(0, most))]

    def runs(self, most: int, slot: int = -1) -> list[tuple[int, int, int, int]]:
        out = []
        for _ in range(self.rng.randint(1, most)):
            size = 16 * self.rng.randint(1, 14)
            out.append((self.pool, size, size if slot >= 0 else 0, slot))
            self.pool += size * (EXPERTS if slot >= 0 else 1)
        return out

    def add(self) -> None:
        """An instruction, or those that fill the slots of experts."""
        rng = self.rng
        what = rng.random()
        if what < 0.12:
            slots = self.buffer("i32", 1, SLOTS)
            cut = rng.randint(0, SLOTS - 1)
            first = len(self.tasks)
            for a, b in ((0, cut), (cut, SLOTS)):
                if a < b:
                    self.tasks.append(Task(self.worker(), DISPATCH, 0, self.boxes(2), [(slots, 0, 1, a, b)], []))
            self.dispatched.append((slots, list(range(first, len(self.tasks)))))
        elif what < 0.45 and self.dispatched:
            slots, several = rng.choice(self.dispatched)[0], rng.random() < 0.4
            first = 0 if several else rng.randrange(SLOTS)
            chosen = range(SLOTS) if several else range(first, first + 1)
            reads = [(slots, 0, 1, first, chosen[-1] + 1), *self.boxes(1, io=False)]
            flags = fmt.GATED if rng.random() < 0.15 else 0
            runs = [run for slot in chosen for run in self.runs(2 - several, slot)]
            self.tasks.append(Task(self.worker(), PLAIN, flags, reads, self.boxes(2, True), runs, slots))
        else:
            flags = fmt.GATED if rng.random() < 0.15 else 0
            tape = self.runs(2) if rng.random() < 0.7 else []
            self.tasks.append(Task(self.worker(), PLAIN, flags, self.boxes(2), self.boxes(2, True), tape))

    def order(self) -> None:
        """Waits that order all that conflicts, mostly without those that follow from others."""
        rng, before = self.rng, []
        for k, task in enumerate(self.tasks):
            near = {i for i in range(k) if task is self.sink or conflict(self.tasks[i], task)}
            mine = [i for i in range(k) if self.tasks[i].worker == task.worker]
            known = set(mine[-1:]).union(*(before[i] for i in mine[-1:]))
            near -= set(mine)
            if rng.random() < 0.8:
                for i in sorted(near, reverse=True):
                    if i in known:
                        near.discard(i)
                    known |= before[i] | {i} if i in near else set()
            producers = sorted(near)
            while producers:
                some = producers[: rng.choice([1, len(producers)])]
                producers = producers[len(some) :]
                task.waits.append((self.event(task.worker // self.blocks, some), len(some)))
            before.append(known.union(near, *(before[i] for i in near)))
        for slots, writers in self.dispatched:
            for device in {t.worker // self.blocks for t in self.tasks if t.slots == slots}:
                self.event(device, writers)

    def event(self, device: int, producers: list[int]) -> int:
        self.events.append((device, len(producers)))
        for i in producers:
            self.tasks[i].notifies.append(len(self.events) - 1)
        return len(self.events) - 1

    def tables(self) -> dict[str, np.ndarray]:
        """The engine's tables."""
        rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in fmt.TABLES}
        self.sequence = []
        place = {}
        for w in range(self.devices * self.blocks):
            begin = len(rows["instructions"])
            for k, t in enumerate(self.tasks):
                if t.worker != w:
                    continue
                place[k] = len(rows["instructions"])
                device = w // self.blocks
                starts = [len(rows[n]) for n in ("operands", "waits", "notifies", "tape", "regions")]
                rows["operands"].append((t.slots, 0, 0))
                rows["waits"] += t.waits
                rows["notifies"] += [(e, int(self.events[e][0] != device)) for e in t.notifies]
                rows["tape"] += [(*r, 0) for r in t.tape]
                rows["regions"] += [(b[0], fmt.READ, *b[1:]) for b in t.reads]
                rows["regions"] += [(b[0], fmt.WRITE, *b[1:]) for b in t.writes]
                counts = (len(t.waits), len(t.notifies), len(t.tape), len(t.reads) + len(t.writes), 1)
                op = next((writers[0] for _, writers in self.dispatched if k in writers), k)  # a group is one operator
                head = (t.kind, t.flags, op, (k, 0, 0, 0), *starts, fmt.NONE)
                rows["instructions"].append((*head, *counts, (0, 0, 0)))
            rows["streams"].append((0, w // self.blocks, w, 0, begin, len(rows["instructions"])))
        self.sequence = [place[k] for k in range(len(self.tasks))]
        rows["events"] = [(0, d, n, 0) for d, n in self.events]
        offset = 0
        for dtype, r, c in self.buffers:
            rows["buffers"].append((0, 0, offset, 4 * r * c, r, c, fmt.DTYPES.index(dtype), 0))
            offset += 4 * r * c
        self.words = offset // 4
        return {name: np.array(rows[name], fmt.TABLES[name].dtype) for name in fmt.TABLES}


def conflict(a: Task, b: Task) -> bool:
    """Whether two tasks touch the same word, one of them writing."""

    def meet(r: tuple[int, ...], q: tuple[int, ...]) -> bool:
        return r[0] == q[0] and r[1] < q[2] and q[1] < r[2] and r[3] < q[4] and q[3] < r[4]

    return any(meet(r, q) for r in a.writes for q in b.reads + b.writes) or any(
        meet(r, q) for r in a.reads for q in b.writes
    )
