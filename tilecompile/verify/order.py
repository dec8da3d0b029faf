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
from tilecompile.verify.base import ACTIVATION, Bools, Ints, Subject, VerifyError, overlaps, uncovered

Clocks = dict[int, npt.NDArray[np.int32]]


def check_order(s: Subject, program: int) -> int:
    """Proves one step program whose thresholds are exact; returns the number of conflicting pairs that are ordered."""
    lists = s.streams_of(program)
    clocks = _progress(s, lists)
    _sink(s, program, lists, clocks)
    return _ordered(s, lists, clocks)


def check_thresholds(s: Subject, program: int) -> None:
    """Checks every wait against the real notifications.

    Too high a threshold is never reached. With one that is too low, the counter gets ahead of it by the same number in
    every run, until the difference no longer fits the comparison of counters that wrap; so it is wrong even where other
    waits imply the same order.
    """
    events = s.t["events"]
    found = {}
    for field, table, does in (("notify", "notifies", "notifies"), ("wait", "waits", "waits for")):
        rows, owner = s.rows(field)
        mine = s.program[owner] == program
        owner, row = owner[mine], s.t[table][rows[mine]]
        found[field] = owner, row
        for k in np.flatnonzero(events["program"][row["event"]] != program)[:1]:
            raise VerifyError(f"{s.name(int(owner[k]))} {does} event {row['event'][k]} of another program")
    made = np.bincount(found["notify"][1]["event"], minlength=len(events))
    owner, wait = found["wait"]
    event = wait["event"]
    wrong = (wait["count"] != made[event]) | (wait["count"] != events["wait_count"][event]) | (wait["count"] == 0)
    for k in np.flatnonzero(wrong)[:1]:
        producers = found["notify"][0][found["notify"][1]["event"] == event[k]].tolist()
        some = ", ".join(s.name(p) for p in producers[:2]) or "nothing"
        raise VerifyError(
            f"{s.name(int(owner[k]))} waits for {wait['count'][k]} notifications of event {event[k]}, which states "
            f"{events['wait_count'][event[k]]} and gets {len(producers)} a run, from {some}"
            f"{' and others' if len(producers) > 2 else ''}"
        )


def _progress(s: Subject, lists: list[list[int]]) -> Clocks:
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
        missing = next(p for stream in lists for p in stream if p not in clocks and event in s.notifies[p])
        raise deadlock(s, i, event, counters[event], count, missing)
    return clocks


def deadlock(s: Subject, i: int, event: int, have: int, want: int, missing: int) -> VerifyError:
    """The error for an instruction whose event waits for one that can't run."""
    return VerifyError(
        f"deadlock: {s.name(i)} waits for event {event} ({have} of {want}), but {s.name(missing)} can't run before it"
    )


def commit_count(s: Subject, program: int, commits: list[int]) -> None:
    """Checks that there is one commit."""
    if len(commits) != 1:
        names = f": {', '.join(map(s.name, commits))}" if commits else ""
        raise VerifyError(f"program {program} has {len(commits)} commits, want 1{names}")


def late(s: Subject, instruction: int, commit: int) -> VerifyError:
    """The error for an instruction that may run after the sink."""
    return VerifyError(
        f"{s.name(instruction)} isn't ordered before {s.name(commit)} (missing edge: {instruction} -> {commit})"
    )


def _sink(s: Subject, program: int, lists: list[list[int]], clocks: Clocks) -> None:
    """Checks that there is one commit and that everything comes before it."""
    commits = [i for i in clocks if int(s.t["instructions"][i]["kind"]) == fmt.COMMIT_KIND]
    commit_count(s, program, commits)
    clock = clocks[commits[0]]
    for number, stream in enumerate(lists):
        if clock[number] < len(stream):
            raise late(s, stream[int(clock[number])], commits[0])


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
            race(s, regions[write][j], int(owners[write][j]), regions[i], int(owners[i]))
        pairs += int(conflict[~write].sum()) + int(conflict[write].sum()) // 2
        if arenas[int(regions[0]["buffer"])] == ACTIVATION:
            _written(s, regions, owners, write, conflict & before)
    return pairs


def race(s: Subject, a: Any, writer: int, b: Any, other: int) -> None:
    """Raises for two accesses that may happen at once; the operators' order says which edge is missing."""
    op = s.t["instructions"]["op"]
    first, second = (writer, other) if op[writer] <= op[other] else (other, writer)
    raise VerifyError(
        f"{s.name(writer)} writes {s.box(a)} while {s.name(other)} {'writes' if b['mode'] == fmt.WRITE else 'reads'} "
        f"{s.box(b)}: no edge orders them (missing edge: {first} -> {second})"
    )


def _written(s: Subject, regions: Any, owners: Ints, write: Bools, earlier: Bools) -> None:
    """Checks that the reads of one scratch buffer see only what the step wrote; `earlier` is [regions, writes]."""
    reads = np.flatnonzero(~write)
    for i in reads[uncovered(regions[reads], regions[write], earlier[reads])][:1]:
        meets = overlaps(regions[i : i + 1], regions[write])[0] & ~earlier[i]
        after = [int(w) for w in owners[write][meets] if w != owners[i]]
        raise unwritten(s, regions[i], int(owners[i]), after[0] if after else None)


def unwritten(s: Subject, region: Any, owner: int, after: int | None) -> VerifyError:
    """The error for a read of scratch memory that was not written before, maybe because it is written later."""
    why = "nothing writes the rest" if after is None else f"{s.name(after)} writes some of it, but after it"
    return VerifyError(f"{s.name(owner)} reads {s.box(region)}, not all of it written before: {why}")
