"""verify, part: waits, progress, the sink, and the order of accesses to memory within a step.

Ordering is decided by vector clocks over the streams: waiting for all producers of an event joins their clocks. Nothing
but its events orders one agent of a worker against another.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime import format as fmt
from tilecompile.verify_base import ACTIVATION, Bools, Ints, Subject, VerifyError, covered, overlaps

Clocks = dict[int, npt.NDArray[np.int32]]


def check_order(s: Subject, program: int) -> int:
    """Proves one step program; returns the number of conflicting pairs that are ordered."""
    lists = s.streams_of(program)
    producers = _thresholds(s, program, lists)
    clocks = _progress(s, lists, producers)
    _sink(s, program, lists, clocks)
    return _ordered(s, lists, clocks)


def _thresholds(s: Subject, program: int, lists: list[list[int]]) -> dict[int, list[int]]:
    """Checks every wait against the real notifications; returns each event's producers.

    Too high a threshold is never reached. With one that is too low, the counter gets ahead of it by the same number in
    every run, until the difference no longer fits the comparison of counters that wrap; so it is wrong even where the
    order that it stands for follows from other waits.
    """
    producers: dict[int, list[int]] = defaultdict(list)
    owner = s.t["events"]["program"].tolist()
    for i in (i for stream in lists for i in stream):
        for event in s.notifies[i]:
            if owner[event] != program:
                raise VerifyError(f"{s.name(i)} notifies event {event} of another program")
            producers[event].append(i)
    stated = s.t["events"]["wait_count"].tolist()
    for i in (i for stream in lists for i in stream):
        for event, count in s.waits[i]:
            if owner[event] != program:
                raise VerifyError(f"{s.name(i)} waits for event {event} of another program")
            if count != len(producers[event]) or count != stated[event] or not count:
                some = ", ".join(s.name(p) for p in producers[event][:2]) or "nobody"
                raise VerifyError(
                    f"{s.name(i)} waits for {count} notifications of event {event}, which states "
                    f"{stated[event]} and gets {len(producers[event])} a run, from {some}"
                    f"{' and others' if len(producers[event]) > 2 else ''}"
                )
    return producers


def _progress(s: Subject, lists: list[list[int]], producers: dict[int, list[int]]) -> Clocks:
    """Runs the program abstractly; returns each instruction's vector clock.

    An instruction's clock holds, for every stream, how many of its instructions are complete before it starts; its
    own entry counts itself.
    """
    clocks: Clocks = {}
    event_clock: Clocks = {}
    counters: dict[int, int] = defaultdict(int)
    next_of = [0] * len(lists)
    current = [np.zeros(len(lists), np.int32) for _ in lists]
    moved = True
    while moved:
        moved = False
        for number, stream in enumerate(lists):
            while next_of[number] < len(stream):
                i = stream[next_of[number]]
                if any(counters[event] < count for event, count in s.waits[i]):
                    break
                clock = current[number].copy()
                for event, _ in s.waits[i]:
                    np.maximum(clock, event_clock[event], out=clock)
                next_of[number] += 1
                clock[number] = next_of[number]
                clocks[i] = current[number] = clock
                for event in s.notifies[i]:
                    counters[event] += 1
                    joined = event_clock.get(event)
                    event_clock[event] = clock if joined is None else np.maximum(joined, clock)
                moved = True
    stuck = [stream[k] for stream, k in zip(lists, next_of, strict=True) if k < len(stream)]
    if stuck:
        i = stuck[0]
        event, count = next((e, c) for e, c in s.waits[i] if counters[e] < c)
        missing = next(p for p in producers[event] if p not in clocks)
        raise VerifyError(
            f"deadlock: {s.name(i)} waits for event {event} ({counters[event]} of {count}), but "
            f"{s.name(missing)} can't run before it"
        )
    return clocks


def _sink(s: Subject, program: int, lists: list[list[int]], clocks: Clocks) -> None:
    """Checks that there is one commit and that everything comes before it."""
    commits = [i for i in clocks if int(s.t["instructions"][i]["kind"]) == fmt.COMMIT_KIND]
    if len(commits) != 1:
        names = f": {', '.join(map(s.name, commits))}" if commits else ""
        raise VerifyError(f"program {program} has {len(commits)} commits, wanted 1{names}")
    clock = clocks[commits[0]]
    for number, stream in enumerate(lists):
        if clock[number] < len(stream):
            late = stream[int(clock[number])]
            raise VerifyError(
                f"{s.name(late)} isn't ordered before {s.name(commits[0])} (missing edge: {late} -> {commits[0]})"
            )


def _ordered(s: Subject, lists: list[list[int]], clocks: Clocks) -> int:
    """Checks that conflicting accesses are ordered and that scratch memory is written before it is read."""
    total = len(s.t["instructions"])
    stream, place, row = (np.full(total, -1, np.int64) for _ in range(3))
    for number, members in enumerate(lists):
        stream[members], place[members] = number, np.arange(len(members))
    row[list(clocks)] = np.arange(len(clocks))
    matrix = np.stack(list(clocks.values()))

    def precede(later: Ints, earlier: Ints) -> Bools:
        """bool [later, earlier]: whether each instruction comes after each other one, at every timing."""
        return np.asarray(matrix[row[later]][:, stream[earlier]] > place[earlier])

    mine = np.flatnonzero(stream[s.owner] >= 0)
    mine = mine[np.argsort(s.regions["buffer"][mine], kind="stable")]
    buffers = s.regions["buffer"][mine]
    arenas = s.t["buffers"]["arena"]
    pairs = 0
    for group in np.split(mine, np.flatnonzero(np.diff(buffers)) + 1) if len(mine) else ():
        regions, owners = s.regions[group], s.owner[group]
        write = regions["mode"] == fmt.WRITE
        conflict = overlaps(regions, regions[write]) & (owners[:, None] != owners[write])
        before, after = precede(owners, owners[write]), precede(owners[write], owners).T
        for i, j in np.argwhere(conflict & ~before & ~after)[:1]:
            _race(s, regions[write][j], int(owners[write][j]), regions[i], int(owners[i]))
        pairs += int(conflict[~write].sum()) + int(conflict[write].sum()) // 2
        if arenas[int(regions[0]["buffer"])] == ACTIVATION:
            _written(s, regions, owners, write, conflict & before)
    return pairs


def _race(s: Subject, a: Any, writer: int, b: Any, other: int) -> None:
    """Raises for two accesses that may happen at once; the operators' order says which edge was meant to be."""
    op = s.t["instructions"]["op"]
    first, second = (writer, other) if op[writer] <= op[other] else (other, writer)
    raise VerifyError(
        f"{s.name(writer)} writes {s.box(a)} while {s.name(other)} {'writes' if b['mode'] == fmt.WRITE else 'reads'} "
        f"{s.box(b)}: no edge orders them (missing edge: {first} -> {second})"
    )


def _written(s: Subject, regions: Any, owners: Ints, write: Bools, earlier: Bools) -> None:
    """Checks that the reads of one scratch buffer see only what the step wrote; `earlier` is [regions, writes]."""
    proved = set()
    for i in np.flatnonzero(~write):
        key = (regions[i].tobytes(), earlier[i].tobytes())
        if key not in proved and not covered(regions[i], regions[write][earlier[i]]):
            meets = overlaps(regions[i : i + 1], regions[write])[0] & ~earlier[i]
            late = [int(w) for w in owners[write][meets] if w != owners[i]]
            why = f"{s.name(late[0])} writes some of it, but after it" if late else "nobody writes the rest"
            raise VerifyError(
                f"{s.name(int(owners[i]))} reads {s.box(regions[i])}, not all of it written before: {why}"
            )
        proved.add(key)
