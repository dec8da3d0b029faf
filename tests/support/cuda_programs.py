"""Random step programs for the GPU's loop, as the tables of an engine."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilecompile.runtime import format as fmt

PLAIN, DISPATCH, NEXT = 1, 2, 3
"""Task kinds: see `task` in cuda_host/harness.cpp."""

EXPERTS, SLOTS, VOCAB = 3, 3, 5
TOKENS = 3
"""Most tokens of a step."""

FIVE = len(fmt.PROGRAMS)
"""Programs of an engine that drafts."""


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
    program: int = 0
    waits: list[tuple[int, int]] = field(default_factory=list)
    notifies: list[int] = field(default_factory=list)


IDS, POSITION, SAMPLED, LOGITS = range(4)


class Case:
    """Random step programs: tables, memory, devices, blocks, and which program follows which.

    Of several programs the last one may be one that nothing leads to.
    """

    def __init__(self, rng: random.Random, most: int = 20, programs: int = 1) -> None:
        self.rng = rng
        self.devices, self.blocks = rng.choice([(1, 8), (1, 8), (2, 4), (2, 4), (2, 8)])
        self.buffers: list[tuple[str, int, int]] = [("i32", 1, TOKENS), ("i32", 1, 1), ("i32", 1, TOKENS)]
        self.buffers.append(("f32", TOKENS, VOCAB))
        self.plain = [self.buffer("f32", rng.randint(1, 3), rng.randint(1, 4)) for _ in range(rng.randint(2, 6))]
        self.events: list[tuple[int, int, int]] = []
        self.tasks: list[Task] = []
        self.pool = 0
        self.dispatched: list[tuple[int, list[int]]] = []
        self.controller = self.worker()
        self.programs = random_table(rng, programs)
        for program in range(programs):
            begin = len(self.tasks)
            self.dispatched_here: list[tuple[int, list[int]]] = []
            for _ in range(rng.randint(3, max(3, most // programs))):
                self.add()
            self.dispatched += self.dispatched_here
            sampled, logits = [(SAMPLED, 0, 1, 0, TOKENS)], [(LOGITS, 0, TOKENS, 0, VOCAB)]
            self.tasks.append(Task(self.worker(), NEXT, 0, self.boxes(2), sampled, []))
            self.tasks.append(Task(self.worker(), PLAIN, fmt.PREDICATED, self.boxes(2), logits, self.runs(1)))
            self.tasks.append(Task(self.controller, fmt.COMMIT_KIND, 0, [*sampled, *logits], [], []))
            for task in self.tasks[begin:]:
                task.program = program
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
            self.dispatched_here.append((slots, list(range(first, len(self.tasks)))))
        elif what < 0.45 and self.dispatched_here:
            slots, several = rng.choice(self.dispatched_here)[0], rng.random() < 0.4
            first = 0 if several else rng.randrange(SLOTS)
            chosen = range(SLOTS) if several else range(first, first + 1)
            reads = [(slots, 0, 1, first, chosen[-1] + 1), *self.boxes(1, io=False)]
            flags = fmt.PREDICATED if rng.random() < 0.15 else 0
            runs = [run for slot in chosen for run in self.runs(2 - several, slot)]
            self.tasks.append(Task(self.worker(), PLAIN, flags, reads, self.boxes(2, True), runs, slots))
        else:
            flags = fmt.PREDICATED if rng.random() < 0.15 else 0
            tape = self.runs(2) if rng.random() < 0.7 else []
            self.tasks.append(Task(self.worker(), PLAIN, flags, self.boxes(2), self.boxes(2, True), tape))

    def order(self) -> None:
        """Waits that order all that conflicts within a program, mostly without those that follow from others."""
        rng, before = self.rng, []
        for k, task in enumerate(self.tasks):
            earlier = [i for i in range(k) if self.tasks[i].program == task.program]
            sink = task.kind == fmt.COMMIT_KIND
            near = {i for i in earlier if sink or conflict(self.tasks[i], task)}
            mine = [i for i in earlier if self.tasks[i].worker == task.worker]
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
        self.events.append((self.tasks[producers[0]].program, device, len(producers)))
        for i in producers:
            self.tasks[i].notifies.append(len(self.events) - 1)
        return len(self.events) - 1

    def tables(self) -> dict[str, np.ndarray]:
        """The engine's tables."""
        rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in fmt.TABLES}
        self.place: dict[int, int] = {}
        for program in range(len(self.programs.rows)):
            for w in range(self.devices * self.blocks):
                begin = len(rows["instructions"])
                for k, t in enumerate(self.tasks):
                    if (t.program, t.worker) == (program, w):
                        self.place[k] = len(rows["instructions"])
                        self.instruction(rows, k, t)
                rows["streams"].append((program, w // self.blocks, w, 0, begin, len(rows["instructions"])))
        rows["events"] = [(program, device, n, 0) for program, device, n in self.events]
        offset = 0
        for dtype, r, c in self.buffers:
            rows["buffers"].append((0, 0, offset, 4 * r * c, r, c, fmt.DTYPES.index(dtype), 0))
            offset += 4 * r * c
        self.words = offset // 4
        return {name: np.array(rows[name], fmt.TABLES[name].dtype) for name in fmt.TABLES}

    def instruction(self, rows: dict[str, list[tuple[Any, ...]]], k: int, t: Task) -> None:
        """Appends task k."""
        starts = [len(rows[n]) for n in ("operands", "waits", "notifies", "tape", "regions")]
        rows["operands"].append((t.slots, 0, 0))
        rows["waits"] += t.waits
        rows["notifies"] += [(e, int(self.events[e][1] != t.worker // self.blocks)) for e in t.notifies]
        rows["tape"] += [(*r, 0) for r in t.tape]
        rows["regions"] += [(b[0], fmt.READ, *b[1:]) for b in t.reads]
        rows["regions"] += [(b[0], fmt.WRITE, *b[1:]) for b in t.writes]
        counts = (len(t.waits), len(t.notifies), len(t.tape), len(t.reads) + len(t.writes), 1)
        op = next((writers[0] for _, writers in self.dispatched if k in writers), k)  # a group is one operator
        head = (t.kind, t.flags, op, (k, 0, 0, 0), *starts, fmt.NONE)
        rows["instructions"].append((*head, *counts, (0, 0, 0)))

    def sequence(self, program: int) -> list[int]:
        """The instructions of a program in an order that it allows, the sink last; after `tables`."""
        return [self.place[k] for k, task in enumerate(self.tasks) if task.program == program]


def random_table(rng: random.Random, programs: int) -> fmt.ProgramTable:
    """What may follow what: any of the programs any other, but maybe for the last of several.

    Of FIVE, what follows in an engine that drafts.
    """
    if programs == FIVE:
        names = tuple(fmt.PROGRAMS)
        verify, prefill = rng.randint(2, TOKENS), rng.randint(1, TOKENS)
        tokens = {"decode": 1, "verify": verify, "prefill": prefill, "extend": max(verify, prefill), "draft": 1}
        return fmt.program_table([fmt.PROGRAMS[name].stated(tokens[name], names) for name in names], "decode")
    rows = np.zeros(programs, fmt.PROGRAM.dtype)
    led_to = programs - (programs > 1 and rng.random() < 0.3)
    for number, row in enumerate(rows):
        row["tokens"] = rng.randint(1, TOKENS)
        for key in fmt.FOLLOWERS:
            speculative = key in ("on_taken", "on_draft", "on_verify")
            row[key] = rng.randrange(led_to) if number < led_to and not speculative else fmt.NONE
    return fmt.ProgramTable(rows, rng.randrange(led_to))


def conflict(a: Task, b: Task) -> bool:
    """Whether two tasks touch the same word, one of them writing."""

    def meet(r: tuple[int, ...], q: tuple[int, ...]) -> bool:
        return r[0] == q[0] and r[1] < q[2] and q[1] < r[2] and r[3] < q[4] and q[3] < r[4]

    return any(meet(r, q) for r in a.writes for q in b.reads + b.writes) or any(
        meet(r, q) for r in a.reads for q in b.writes
    )


def two_tasks(kind: int, workers: int = 2, programs: int = 1) -> Case:
    """Programs of two tasks: one makes tokens of the step's ids, the other one is the sink."""
    case = Case(random.Random(programs), 3, programs)
    case.devices, case.blocks, case.dispatched, case.events, case.pool = 1, workers, [], [], 0
    ids, sampled = [(IDS, 0, 1, 0, TOKENS)], [(SAMPLED, 0, 1, 0, TOKENS)]
    case.tasks = []
    for program in range(programs):
        case.tasks.append(Task(workers - 1, kind, 0, ids, sampled, [], program=program))
        case.tasks.append(Task(0, fmt.COMMIT_KIND, 0, sampled, [], [], program=program))
    case.order()
    return case
