"""verify: proves a program before anything is emitted, over its tables alone.

What is proved, for every timing of the workers:

- layout: every instruction is in one stream; regions lie within their buffers, which don't overlap in memory; nothing
  writes to the weights;
- thresholds: what a wait expects is exactly what the program's instructions notify;
- progress: dependencies together with each worker's order are acyclic, so no run can deadlock (counters only grow, so
  one order that completes shows that all do);
- sink: every instruction comes before the program's one commit, so steps don't mix;
- order: two instructions that touch the same region, one of them writing, are always ordered, and everything that is
  read from a step's scratch memory has been written in the same step before.

What is taken on trust: that bodies touch no more than the declared regions (tests of the ops check that), and that a
write covers its whole region (of a window with gaps the region is the interval around it; see `tile.region_of`).

Ordering is decided by vector clocks over the workers: waiting for all producers of an event joins their clocks.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime import format as fmt

Tables = Mapping[str, npt.NDArray[np.void]]
Bools = npt.NDArray[np.bool_]


class VerifyError(Exception):
    """The program is wrong; says which instructions, which event or region, and what is missing."""


@dataclass(frozen=True)
class Proof:
    """What was proved: numbers of instructions, waits (edges) and checked pairs, and the seconds it took."""

    instructions: int
    edges: int
    pairs: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.instructions} instructions, {self.edges} waits: thresholds exact, no deadlock, one sink, "
            f"{self.pairs} conflicting pairs ordered, in {self.seconds:.2f} s\n"
        )


def verify(tables: Tables, operators: list[str]) -> Proof:
    """Proves all programs of the tables. Raises VerifyError naming both instructions and the missing edge."""
    start = time.perf_counter()
    checker = _Checker(tables, operators)
    checker.layout()
    pairs = sum(checker.program(int(p)) for p in np.unique(tables["streams"]["program"]))
    return Proof(len(tables["instructions"]), len(tables["waits"]), pairs, time.perf_counter() - start)


class _Checker:
    """`waits` has (event, count), `notifies` has events, by instruction; `owner` is each region's instruction."""

    def __init__(self, tables: Tables, operators: list[str]) -> None:
        self.t, self.operators = tables, operators
        ins = tables["instructions"]
        span = {f: (ins[f"{f}_begin"].tolist(), ins[f"{f}_count"].tolist()) for f in ("wait", "notify", "region")}
        waits, notifies = tables["waits"].tolist(), tables["notifies"]["event"].tolist()
        self.waits = [waits[b : b + n] for b, n in zip(*span["wait"], strict=True)]
        self.notifies = [notifies[b : b + n] for b, n in zip(*span["notify"], strict=True)]
        listed = [r for b, n in zip(*span["region"], strict=True) for r in range(b, b + n)]
        self.regions, self.owner = tables["regions"][listed], np.repeat(np.arange(len(ins)), span["region"][1])

    def name(self, i: int) -> str:
        """An instruction in words."""
        ins = self.t["instructions"][i]
        return f"instruction {i} ({self.operators[int(ins['op'])]} tile {tuple(map(int, ins['tile'][:3]))})"

    def layout(self) -> None:
        """Checks what all programs share: streams, regions and buffers."""
        streams = np.zeros(len(self.t["instructions"]), np.int64)
        for s in self.t["streams"]:
            streams[s["begin"] : s["end"]] += 1
        for i in np.flatnonzero(streams != 1)[:1]:
            raise VerifyError(f"{self.name(int(i))} is in {streams[i]} streams, wanted 1")
        regions, buffers = self.regions, self.t["buffers"]
        of = buffers[regions["buffer"]]
        outside = (regions["row_end"] > of["rows"]) | (regions["col_end"] > of["cols"])
        for r in np.flatnonzero(outside)[:1]:
            where, size = self.box(regions[r]), f"[{of['rows'][r]}, {of['cols'][r]}]"
            raise VerifyError(f"{self.name(int(self.owner[r]))} touches {where}, which is {size}")
        constant = (regions["mode"] == fmt.WRITE) & (of["arena"] == fmt.ARENAS.index("weight"))
        for r in np.flatnonzero(constant)[:1]:
            raise VerifyError(f"{self.name(int(self.owner[r]))} writes {self.box(regions[r])}, which holds weights")
        order = np.lexsort((buffers["offset"], buffers["arena"], buffers["device"]))
        for a, b in pairwise(order):
            x, y = buffers[a], buffers[b]
            same = x["device"] == y["device"] and x["arena"] == y["arena"]
            if same and x["offset"] + x["bytes"] > y["offset"]:
                raise VerifyError(f"buffers {a} and {b} overlap in arena {fmt.ARENAS[int(x['arena'])]}")

    def program(self, program: int) -> int:
        """Proves one step program; returns the number of conflicting pairs that are ordered."""
        streams = [s for s in self.t["streams"] if s["program"] == program]
        lists = [list(range(int(s["begin"]), int(s["end"]))) for s in streams]
        producers = self.thresholds(program, lists)
        clocks = self.progress(lists, producers)
        self.sink(lists, clocks)
        return self.ordered(lists, clocks)

    def thresholds(self, program: int, lists: list[list[int]]) -> dict[int, list[int]]:
        """Checks every wait against the real notifications; returns each event's producers."""
        producers: dict[int, list[int]] = defaultdict(list)
        for i in (i for stream in lists for i in stream):
            for event in self.notifies[i]:
                if int(self.t["events"][event]["program"]) != program:
                    raise VerifyError(f"{self.name(i)} notifies event {event} of another program")
                producers[event].append(i)
        stated = self.t["events"]["wait_count"].tolist()
        for i in (i for stream in lists for i in stream):
            for event, count in self.waits[i]:
                if count != len(producers[event]) or count != stated[event]:
                    some = ", ".join(self.name(p) for p in producers[event][:2]) or "nobody"
                    raise VerifyError(
                        f"{self.name(i)} waits for {count} notifications of event {event}, which states "
                        f"{stated[event]} and gets {len(producers[event])} a run, from {some}"
                        f"{' and others' if len(producers[event]) > 2 else ''}"
                    )
        return producers

    def progress(self, lists: list[list[int]], producers: dict[int, list[int]]) -> dict[int, npt.NDArray[np.int32]]:
        """Runs the program abstractly; returns each instruction's vector clock.

        An instruction's clock holds, for every stream, how many of its instructions are complete before it starts; its
        own entry counts itself.
        """
        clocks: dict[int, npt.NDArray[np.int32]] = {}
        event_clock: dict[int, npt.NDArray[np.int32]] = {}
        counters: dict[int, int] = defaultdict(int)
        next_of = [0] * len(lists)
        current = [np.zeros(len(lists), np.int32) for _ in lists]
        moved = True
        while moved:
            moved = False
            for s, stream in enumerate(lists):
                while next_of[s] < len(stream):
                    i = stream[next_of[s]]
                    if any(counters[event] < count for event, count in self.waits[i]):
                        break
                    clock = current[s].copy()
                    for event, _ in self.waits[i]:
                        np.maximum(clock, event_clock[event], out=clock)
                    next_of[s] += 1
                    clock[s] = next_of[s]
                    clocks[i] = current[s] = clock
                    for event in self.notifies[i]:
                        counters[event] += 1
                        joined = event_clock.get(event)
                        event_clock[event] = clock if joined is None else np.maximum(joined, clock)
                    moved = True
        stuck = [stream[k] for stream, k in zip(lists, next_of, strict=True) if k < len(stream)]
        if stuck:
            i = stuck[0]
            event, count = next((e, c) for e, c in self.waits[i] if counters[e] < c)
            missing = next(p for p in producers[event] if p not in clocks)
            raise VerifyError(
                f"deadlock: {self.name(i)} waits for event {event} ({counters[event]} of {count}), but "
                f"{self.name(missing)} can't run before it"
            )
        return clocks

    def sink(self, lists: list[list[int]], clocks: dict[int, npt.NDArray[np.int32]]) -> None:
        """Checks that there is one commit and that everything comes before it."""
        commits = [i for i in clocks if int(self.t["instructions"][i]["kind"]) == fmt.COMMIT_KIND]
        if len(commits) != 1:
            raise VerifyError(f"the program has {len(commits)} commits, wanted 1: {', '.join(map(self.name, commits))}")
        clock = clocks[commits[0]]
        for s, stream in enumerate(lists):
            if clock[s] < len(stream):
                raise VerifyError(f"{self.name(stream[int(clock[s])])} isn't ordered before {self.name(commits[0])}")

    def ordered(self, lists: list[list[int]], clocks: dict[int, npt.NDArray[np.int32]]) -> int:
        """Checks that conflicting accesses are ordered and that scratch memory is written before it is read."""
        total = len(self.t["instructions"])
        stream, place, row = (np.full(total, -1, np.int64) for _ in range(3))
        for s, members in enumerate(lists):
            stream[members], place[members] = s, np.arange(len(members))
        row[list(clocks)] = np.arange(len(clocks))
        matrix = np.stack(list(clocks.values()))

        def precede(later: npt.NDArray[np.int64], earlier: npt.NDArray[np.int64]) -> Bools:
            """bool [later, earlier]: whether each instruction comes after each other one, at every timing."""
            return np.asarray(matrix[row[later]][:, stream[earlier]] > place[earlier])

        mine = np.flatnonzero(stream[self.owner] >= 0)
        mine = mine[np.argsort(self.regions["buffer"][mine], kind="stable")]
        buffers = self.regions["buffer"][mine]
        pairs = 0
        for group in np.split(mine, np.flatnonzero(np.diff(buffers)) + 1):
            regions, owners = self.regions[group], self.owner[group]
            write = regions["mode"] == fmt.WRITE
            conflict = _overlaps(regions, regions[write]) & (owners[:, None] != owners[write])
            before, after = precede(owners, owners[write]), precede(owners[write], owners).T
            for i, j in np.argwhere(conflict & ~before & ~after)[:1]:
                a, b = regions[write][j], regions[i]
                verb = "writes" if write[i] else "reads"
                raise VerifyError(
                    f"{self.name(int(owners[write][j]))} writes {self.box(a)} while {self.name(int(owners[i]))} "
                    f"{verb} {self.box(b)}: no edge orders them"
                )
            pairs += int(conflict[~write].sum()) + int(conflict[write].sum()) // 2
            if fmt.ARENAS[int(self.t["buffers"][int(regions[0]["buffer"])]["arena"])] == "activation":
                self.written(regions, owners, write, conflict & before)
        return pairs

    def written(self, regions: Any, owners: npt.NDArray[np.int64], write: Bools, earlier: Bools) -> None:
        """Checks that the reads of one scratch buffer see only what the step wrote; `earlier` is [regions, writes]."""
        proved = set()
        for i in np.flatnonzero(~write):
            key = (regions[i].tobytes(), earlier[i].tobytes())
            if key not in proved and not _covered(regions[i], regions[write][earlier[i]]):
                raise VerifyError(
                    f"{self.name(int(owners[i]))} reads {self.box(regions[i])}, not all of it written before"
                )
            proved.add(key)

    def box(self, region: Any) -> str:
        """A region in words."""
        rows, cols = (f"{int(region[f'{d}_begin'])}:{int(region[f'{d}_end'])}" for d in ("row", "col"))
        return f"buffer {int(region['buffer'])} [{rows}, {cols}]"


def _overlaps(a: Any, b: Any) -> Bools:
    """bool [a, b]: whether regions meet."""
    rows = (a["row_begin"][:, None] < b["row_end"]) & (b["row_begin"] < a["row_end"][:, None])
    cols = (a["col_begin"][:, None] < b["col_end"]) & (b["col_begin"] < a["col_end"][:, None])
    return np.asarray(rows & cols)


def _covered(region: Any, boxes: Any) -> bool:
    """Whether the boxes together cover the region, decided on the grid of all their bounds."""
    edges = []
    for lo, hi in (("row_begin", "row_end"), ("col_begin", "col_end")):
        cuts = np.concatenate([[region[lo], region[hi]], boxes[lo], boxes[hi]]).astype(np.int64)
        edges.append(np.unique(np.clip(cuts, region[lo], region[hi])))
    rows, cols = edges
    seen = np.zeros((len(rows) - 1, len(cols) - 1), bool)
    for b in boxes:
        seen |= ((rows[:-1] >= b["row_begin"]) & (rows[1:] <= b["row_end"]))[:, None] & (
            (cols[:-1] >= b["col_begin"]) & (cols[1:] <= b["col_end"])
        )
    return bool(seen.all())
