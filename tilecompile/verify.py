"""verify: proves a program before anything is emitted, over its tables alone.

What is proved, for every timing of the workers:

- thresholds: what a wait expects is exactly what the program's instructions notify;
- progress: dependencies together with each worker's order are acyclic, so no run can deadlock (counters only grow, so
  one order that completes shows that all do);
- sink: every instruction comes before the program's one commit;
- order: two instructions that touch the same region, one of them writing, are always ordered, and everything that is
  read from a step's scratch memory has been written in the same step before.

Ordering is decided by vector clocks over the workers: waiting for all producers of an event joins their clocks.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime import format as fmt

Tables = Mapping[str, npt.NDArray[np.void]]


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
    pairs = sum(checker.program(int(p)) for p in np.unique(tables["streams"]["program"]))
    return Proof(len(tables["instructions"]), len(tables["waits"]), pairs, time.perf_counter() - start)


class _Checker:
    def __init__(self, tables: Tables, operators: list[str]) -> None:
        self.t, self.operators = tables, operators
        ins = tables["instructions"]
        self.waits = [range(int(i["wait_begin"]), int(i["wait_begin"]) + int(i["wait_count"])) for i in ins]
        self.notifies = [range(int(i["notify_begin"]), int(i["notify_begin"]) + int(i["notify_count"])) for i in ins]

    def name(self, i: int) -> str:
        """An instruction in words."""
        ins = self.t["instructions"][i]
        return f"instruction {i} ({self.operators[int(ins['op'])]} tile {tuple(map(int, ins['tile'][:3]))})"

    def program(self, program: int) -> int:
        """Proves one step program; returns the number of conflicting pairs that are ordered."""
        streams = [s for s in self.t["streams"] if s["program"] == program]
        lists = [list(range(int(s["begin"]), int(s["end"]))) for s in streams]
        producers = self.thresholds(program, lists)
        clocks, order = self.progress(lists, producers)
        self.sink(lists, clocks, order)
        return self.ordered(lists, clocks)

    def thresholds(self, program: int, lists: list[list[int]]) -> dict[int, list[int]]:
        """Checks every wait against the real notifications; returns each event's producers."""
        producers: dict[int, list[int]] = defaultdict(list)
        for i in (i for stream in lists for i in stream):
            for n in self.notifies[i]:
                event = int(self.t["notifies"][n]["event"])
                if int(self.t["events"][event]["program"]) != program:
                    raise VerifyError(f"{self.name(i)} notifies event {event} of another program")
                producers[event].append(i)
        for i in (i for stream in lists for i in stream):
            for w in self.waits[i]:
                event, count = (int(x) for x in self.t["waits"][w])
                if count != len(producers[event]) or count != int(self.t["events"][event]["wait_count"]):
                    raise VerifyError(
                        f"{self.name(i)} waits for {count} notifications of event {event}, which states "
                        f"{int(self.t['events'][event]['wait_count'])} and gets {len(producers[event])} a run"
                    )
        return producers

    def progress(
        self, lists: list[list[int]], producers: dict[int, list[int]]
    ) -> tuple[dict[int, npt.NDArray[np.int32]], dict[int, tuple[int, int]]]:
        """Runs the program abstractly; returns each instruction's vector clock and its (stream, place).

        An instruction's clock holds, for every stream, how many of its instructions are complete before it starts; its
        own entry counts itself.
        """
        place = {i: (s, k) for s, stream in enumerate(lists) for k, i in enumerate(stream)}
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
                    waits = [tuple(int(x) for x in self.t["waits"][w]) for w in self.waits[i]]
                    if any(counters[event] < count for event, count in waits):
                        break
                    clock = current[s].copy()
                    for event, _ in waits:
                        np.maximum(clock, event_clock[event], out=clock)
                    next_of[s] += 1
                    clock[s] = next_of[s]
                    clocks[i] = current[s] = clock
                    for n in self.notifies[i]:
                        event = int(self.t["notifies"][n]["event"])
                        counters[event] += 1
                        joined = event_clock.get(event)
                        event_clock[event] = clock if joined is None else np.maximum(joined, clock)
                    moved = True
        stuck = [stream[k] for stream, k in zip(lists, next_of, strict=True) if k < len(stream)]
        if stuck:
            i = stuck[0]
            event, count = next(
                (int(e), int(c)) for e, c in (self.t["waits"][w] for w in self.waits[i]) if counters[int(e)] < c
            )
            missing = [p for p in producers[event] if p not in clocks]
            raise VerifyError(
                f"deadlock: {self.name(i)} waits for event {event} ({counters[event]} of {count}), but "
                f"{self.name(missing[0]) if missing else 'nobody'} can't run before it"
            )
        return clocks, place

    def sink(
        self,
        lists: list[list[int]],
        clocks: dict[int, npt.NDArray[np.int32]],
        place: dict[int, tuple[int, int]],
    ) -> None:
        """Checks that there is one commit and that everything comes before it."""
        commits = [i for i in clocks if int(self.t["instructions"][i]["kind"]) == fmt.COMMIT_KIND]
        if len(commits) != 1:
            raise VerifyError(f"the program has {len(commits)} commits, wanted 1")
        clock = clocks[commits[0]]
        for s, stream in enumerate(lists):
            if clock[s] < len(stream):
                raise VerifyError(f"{self.name(stream[int(clock[s])])} isn't ordered before {self.name(commits[0])}")

    def ordered(self, lists: list[list[int]], clocks: dict[int, npt.NDArray[np.int32]]) -> int:
        """Checks that conflicting accesses are ordered and that scratch memory is written before it is read."""
        where = {i: (s, k) for s, stream in enumerate(lists) for k, i in enumerate(stream)}
        touched: dict[int, list[tuple[int, Any]]] = defaultdict(list)
        for i in where:
            ins = self.t["instructions"][i]
            for r in range(int(ins["region_begin"]), int(ins["region_begin"]) + int(ins["region_count"])):
                region = self.t["regions"][r]
                touched[int(region["buffer"])].append((i, region))
        pairs = 0
        for buffer, accesses in touched.items():
            writes = [(i, r) for i, r in accesses if r["mode"] == fmt.WRITE]
            scratch = fmt.ARENAS[int(self.t["buffers"][buffer]["arena"])] == "activation"
            for i, region in accesses:
                before = []
                for j, other in writes:
                    if i == j or not _overlap(region, other):
                        continue
                    s, k = where[j]
                    mine, my_place = where[i]
                    if clocks[i][s] > k:
                        before.append(other)
                    elif clocks[j][mine] <= my_place:
                        raise VerifyError(
                            f"{self.name(j)} writes {self.box(buffer, other)} while {self.name(i)} "
                            f"{'writes' if region['mode'] == fmt.WRITE else 'reads'} {self.box(buffer, region)}: "
                            f"no edge orders them"
                        )
                    pairs += 1
                if scratch and region["mode"] == fmt.READ and not _covered(region, before):
                    raise VerifyError(f"{self.name(i)} reads {self.box(buffer, region)}, not all of it written before")
        return pairs

    def box(self, buffer: int, region: Any) -> str:
        """A region in words."""
        rows, cols = (f"{int(region[f'{d}_begin'])}:{int(region[f'{d}_end'])}" for d in ("row", "col"))
        return f"buffer {buffer} [{rows}, {cols}]"


def _overlap(a: Any, b: Any) -> bool:
    return bool(
        a["row_begin"] < b["row_end"]
        and b["row_begin"] < a["row_end"]
        and a["col_begin"] < b["col_end"]
        and b["col_begin"] < a["col_end"]
    )


def _covered(region: Any, boxes: list[Any]) -> bool:
    """Whether the boxes together cover the region, decided on the grid of all their bounds."""
    edges = []
    for lo, hi in (("row_begin", "row_end"), ("col_begin", "col_end")):
        cuts = {int(region[lo]), int(region[hi])}
        cuts |= {int(b[x]) for b in boxes for x in (lo, hi) if region[lo] < b[x] < region[hi]}
        edges.append(np.array(sorted(cuts)))
    rows, cols = edges
    seen = np.zeros((len(rows) - 1, len(cols) - 1), bool)
    for b in boxes:
        seen |= ((rows[:-1] >= b["row_begin"]) & (rows[1:] <= b["row_end"]))[:, None] & (
            (cols[:-1] >= b["col_begin"]) & (cols[1:] <= b["col_end"])
        )
    return bool(seen.all())
