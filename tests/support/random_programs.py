"""Small step programs drawn at random, right ones and some with a few changes, as the tables of an engine."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product

import numpy as np

from support.table_tools import Ins, Parts, Stream
from tilecompile.runtime import format as fmt

Region = tuple[int, int, int, int, int, int]
Change = Callable[[Parts, random.Random], None]

ARENAS = [fmt.ARENAS.index(name) for name in ("activation", "activation", "cache", "io")]
SPACE = 256
"""Bytes between buffers in an arena."""


def right_program(rng: random.Random) -> Parts:
    """One or two step programs over shared buffers: at most 12 instructions, 4 streams and 3 buffers."""
    buffers = []
    for i in range(rng.randint(1, 3)):
        rows, cols = rng.randint(1, 3), rng.randint(1, 4)
        buffers.append((0, rng.choice(ARENAS), i * SPACE, rows * cols * 4, rows, cols, 0, 0))
    parts = Parts([], [], buffers)
    add_weights(parts, rng)
    workers = rng.randint(1, 4)
    sizes = [rng.randint(2, 12)] if rng.random() < 0.7 else [rng.randint(2, 7), rng.randint(1, 5)]
    for program, size in enumerate(sizes):
        add_program(parts, rng, program, size, workers)
    return parts


def add_weights(parts: Parts, rng: random.Random) -> None:
    """Perhaps a tensor of one or two tiles, and one of two matrices in tiles that slots address."""
    offset = 0
    for gathered in (0, 1):
        if rng.random() < 0.5:
            continue
        matrices = 1 + gathered
        tensor, rows = len(parts.weights), rng.choice([16, 24])
        parts.weights.append((matrices, rows, 2, 0, 0))
        row_cuts = [(0, rows)] if rng.random() < 0.5 else [(0, 16), (16, rows)]
        col_cuts = [(0, 2)] if rng.random() < 0.7 else [(0, 1), (1, 2)]
        for (begin, end), (left, right) in product(row_cuts, col_cuts):
            if begin < end:
                size = -(-(end - begin) // 16) * 64 * (right - left)
                size *= 1 if gathered else matrices
                where = (gathered, matrices if gathered else 1, 0, offset, size)
                parts.tiles.append((0, tensor, fmt.NONE, 0, matrices, begin, end, left, right - left, *where))
                offset += size * (matrices if gathered else 1)


def add_program(parts: Parts, rng: random.Random, program: int, size: int, workers: int) -> None:
    """Appends a program whose waits order all that conflicts."""
    # Streams are workers, of which the last may be the second agent of the first.
    agent = workers > 1 and rng.random() < 0.4
    streams = [
        Stream(program, 0, 0 if agent and w == workers - 1 else w, int(agent and w == workers - 1))
        for w in range(workers)
    ]
    made: list[Ins] = []
    chosen = [rng.randrange(workers) for _ in range(size)]
    for k in range(size):
        record = np.zeros((), fmt.INSTRUCTION.dtype)[()]
        record["kind"], record["op"], record["tile"][0] = (fmt.COMMIT_KIND if k == size - 1 else 1), k, program
        made.append(Ins(record, [], [], regions(parts, rng, made), [], []))
    add_tapes(parts, rng, program, made)
    before: list[set[int]] = []
    for k, ins in enumerate(made):
        near = {i for i in range(k) if k == size - 1 or conflict(made[i], ins)}
        mine = [i for i in range(k) if chosen[i] == chosen[k]]
        known = set(mine[-1:]).union(*(before[i] for i in mine[-1:]))
        if rng.random() < 0.8:  # mostly without waits that follow from others, so that a lost one is felt
            for i in sorted(near, reverse=True):
                if i in known:
                    near.discard(i)
                known |= before[i] | {i} if i in near else set()
        wait(parts, rng, program, [made[i] for i in sorted(near)], ins)
        before.append(known.union(near, *(before[i] for i in near)))
        streams[chosen[k]].instructions.append(ins)
    parts.streams += streams


def wait(parts: Parts, rng: random.Random, program: int, producers: list[Ins], consumer: Ins) -> None:
    """Lets an instruction wait for others, through one event for all or one for each."""
    while producers:
        count = rng.choice([1, len(producers)])
        some, producers = producers[:count], producers[count:]
        event = len(parts.events)
        parts.events.append((program, 0, count, 0))
        consumer.waits.append((event, count))
        for p in some:
            p.notifies.append((event, 0))


def box(parts: Parts, rng: random.Random) -> Region:
    """A random read."""
    buffer = rng.randrange(len(parts.buffers))
    rows, cols = parts.buffers[buffer][4:6]
    r, c = rng.randrange(rows), rng.randrange(cols)
    return buffer, fmt.READ, r, rng.randint(r + 1, rows), c, rng.randint(c + 1, cols)


def cells(r: Region) -> set[tuple[int, int, int]]:
    """The elements of a region."""
    return {(r[0], i, j) for i in range(r[2], r[3]) for j in range(r[4], r[5])}


def regions(parts: Parts, rng: random.Random, made: list[Ins]) -> list[Region]:
    """Up to three random accesses; scratch memory that isn't written yet is written instead of read."""
    written = {c for i in made for r in i.regions if r[1] == fmt.WRITE for c in cells(r)}  # type: ignore[arg-type]
    out = []
    for _ in range(rng.randint(0, 3)):
        r = box(parts, rng)
        scratch = fmt.ARENAS[parts.buffers[r[0]][1]] == "activation"
        write = rng.random() < 0.4 or (scratch and not cells(r) <= written)
        out.append((r[0], fmt.WRITE if write else fmt.READ, *r[2:]))
    return out


def conflict(a: Ins, b: Ins) -> bool:
    """Whether two instructions touch the same element, one of them writing."""
    return any(
        fmt.WRITE in (r[1], q[1]) and cells(r) & cells(q)  # type: ignore[arg-type]
        for r in a.regions
        for q in b.regions
    )


def add_tapes(parts: Parts, rng: random.Random, program: int, made: list[Ins]) -> None:
    """Lets random instructions read all tiles, those with slots once for each of two slots; or none of a tensor's."""
    skipped = {w for w in range(len(parts.weights)) if rng.random() < 0.2}
    for w in set(range(len(parts.weights))) - skipped:
        parts.weights[w] = (*parts.weights[w][:4], parts.weights[w][4] | 1 << program)
    for number, tile in enumerate(parts.tiles):
        if tile[1] in skipped:
            continue
        gathered, (offset, size) = tile[9], tile[12:]
        for slot in (0, 1) if gathered else (-1,):
            rng.choice(made).tape.append((offset, size, size if gathered else 0, slot, number))


def pick(parts: Parts, rng: random.Random, has: Callable[[Ins], object] = lambda i: True) -> tuple[Stream, int] | None:
    """A random instruction that has something."""
    found = [(s, k) for s in parts.streams for k, i in enumerate(s.instructions) if has(i)]
    return rng.choice(found) if found else None


def lose_edge(parts: Parts, rng: random.Random) -> None:
    """One producer of an event no longer counts: its notification and one of each wait's count are gone."""
    found = pick(parts, rng, lambda i: i.notifies)
    if found is None:
        return
    notifies = found[0].instructions[found[1]].notifies
    event = notifies.pop(rng.randrange(len(notifies)))[0]
    program, device, count, tensor = parts.events[event]
    parts.events[event] = (program, device, max(0, count - 1), tensor)
    for i in parts.instructions():
        i.waits = [(e, c - (e == event)) for e, c in i.waits if e != event or c > 1]


def lose_wait(parts: Parts, rng: random.Random) -> None:
    if found := pick(parts, rng, lambda i: i.waits):
        waits = found[0].instructions[found[1]].waits
        waits.pop(rng.randrange(len(waits)))


def lose_notify(parts: Parts, rng: random.Random) -> None:
    if found := pick(parts, rng, lambda i: i.notifies):
        notifies = found[0].instructions[found[1]].notifies
        notifies.pop(rng.randrange(len(notifies)))


def threshold(parts: Parts, rng: random.Random) -> None:
    """Of a wait, of the event, or of both."""
    if found := pick(parts, rng, lambda i: i.waits):
        waits = found[0].instructions[found[1]].waits
        k, add, which = rng.randrange(len(waits)), rng.choice([-1, 1]), rng.randrange(3)
        event, count = waits[k]
        if which:
            waits[k] = (event, max(0, count + add))
        if which != 1:
            program, device, stated, tensor = parts.events[event]
            parts.events[event] = (program, device, max(0, stated + add), tensor)


def more_waiting(parts: Parts, rng: random.Random) -> None:
    """An instruction waits for an event that exists: harmless unless it closes a cycle or is another program's."""
    if parts.events and (found := pick(parts, rng)):
        event = rng.randrange(len(parts.events))
        found[0].instructions[found[1]].waits.append((event, parts.events[event][2]))


def more_notifying(parts: Parts, rng: random.Random) -> None:
    """An instruction also notifies an event, whose waits expect it: one more producer, or one of another program."""
    if parts.events and (found := pick(parts, rng)):
        event = rng.randrange(len(parts.events))
        found[0].instructions[found[1]].notifies.append((event, 0))
        program, device, count, tensor = parts.events[event]
        parts.events[event] = (program, device, count + 1, tensor)
        for i in parts.instructions():
            i.waits = [(e, c + (e == event)) for e, c in i.waits]


def swap(parts: Parts, rng: random.Random) -> None:
    if streams := [s for s in parts.streams if len(s.instructions) > 1]:
        members = rng.choice(streams).instructions
        k = rng.randrange(len(members) - 1)
        members[k : k + 2] = members[k : k + 2][::-1]


def move(parts: Parts, rng: random.Random) -> None:
    if found := pick(parts, rng):
        ins = found[0].instructions.pop(found[1])
        to = rng.choice([s for s in parts.streams if s.program == found[0].program])
        to.instructions.insert(rng.randint(0, len(to.instructions)), ins)


def change_region(parts: Parts, rng: random.Random) -> None:
    """Drops, adds or alters a region, which may become empty or lead out of its buffer."""
    if found := pick(parts, rng):
        boxes = found[0].instructions[found[1]].regions
        if boxes and rng.random() < 0.6:
            boxes.pop(rng.randrange(len(boxes)))
        if rng.random() < 0.7:
            r = list(box(parts, rng))
            r[1] = rng.choice([fmt.READ, fmt.WRITE])
            r[rng.choice([3, 5])] += rng.choice([0, 0, 0, 0, -1, 1])
            boxes.append(tuple(r))


def change_sink(parts: Parts, rng: random.Random) -> None:
    if found := pick(parts, rng):
        record = found[0].instructions[found[1]].record
        record["kind"] = fmt.COMMIT_KIND if record["kind"] else 1


def change_tape(parts: Parts, rng: random.Random) -> None:
    """Drops, doubles or moves a run, or puts it elsewhere in the pool."""
    if found := pick(parts, rng, lambda i: i.tape):
        tape = found[0].instructions[found[1]].tape
        run = tape.pop(rng.randrange(len(tape)))
        how = rng.randrange(4)
        if how == 1:
            tape += [run, run]
        elif how == 2:
            rng.choice([i for s in parts.streams if s.program == found[0].program for i in s.instructions]).tape.append(
                run
            )
        elif how == 3:
            tape.append((run[0] + 64, *run[1:]))


def change_arena(parts: Parts, rng: random.Random) -> None:
    k = rng.randrange(len(parts.buffers))
    parts.buffers[k] = (0, rng.randrange(len(fmt.ARENAS)), *parts.buffers[k][2:])


def alias(parts: Parts, rng: random.Random) -> None:
    """A buffer is placed on another one, or overlaps it in part; harmless for scratch memory of different programs."""
    a, b = rng.randrange(len(parts.buffers)), rng.randrange(len(parts.buffers))
    offset = parts.buffers[b][2] + rng.choice([0, 0, 0, 64, 4])
    parts.buffers[a] = (*parts.buffers[a][:2], offset, *parts.buffers[a][3:])


def change_agent(parts: Parts, rng: random.Random) -> None:
    s = rng.choice(parts.streams)
    s.agent = rng.randrange(3)


CHANGES: tuple[Change, ...] = (
    *(lose_edge, lose_edge, lose_edge, lose_wait, lose_notify, threshold, more_waiting, more_waiting, swap, swap),
    *(
        more_notifying,
        move,
        move,
        change_region,
        change_region,
        change_sink,
        change_tape,
        change_arena,
        alias,
        alias,
        change_agent,
    ),
)


def random_program(seed: int) -> tuple[Parts, list[str]]:
    """A right program with up to three changes, and their names."""
    rng = random.Random(seed)
    parts = right_program(rng)
    changes = rng.choices(CHANGES, k=rng.choice([0, 1, 1, 1, 2, 3]))
    for change in changes:
        change(parts, rng)
    return parts, [change.__name__ for change in changes]
