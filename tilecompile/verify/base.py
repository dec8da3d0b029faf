"""What the parts of `verify` share: the tables taken apart by instruction, and words for what is in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime import format as fmt
from tilecompile.runtime.folder.rows import SPANS, entries

Tables = Mapping[str, npt.NDArray[np.void]]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

ACTIVATION, CACHE, WEIGHT, IO = range(len(fmt.ARENAS))

_INDICES = (
    ("operands", "buffer", "buffers"),
    ("waits", "event", "events"),
    ("notifies", "event", "events"),
    ("tape", "tile", "tiles"),
    ("regions", "buffer", "buffers"),
    ("tiles", "tensor", "weights"),
    ("tiles", "second", "weights"),
)


class VerifyError(Exception):
    """The program is wrong: the text names the instructions, the event or region, and what is missing."""


@dataclass(frozen=True)
class Names:
    """What operators, buffers and streamed weights are called, by index; numbers stand for names that aren't known.

    `layers` are those of the operators, as far as they are known.
    """

    operators: Sequence[str] = ()
    buffers: Sequence[str] = ()
    weights: Sequence[str] = ()
    layers: Sequence[int | None] = ()


class Subject:
    """The tables of a proof.

    `stream` is each instruction's stream and `program` its step program; `touched` are all regions that touch
    something, `toucher` is each one's instruction; `regions` and `owner` are those but for reads of weights, which
    nothing writes. Raises VerifyError for an index out of range and for instructions that aren't in exactly one stream.
    """

    def __init__(self, tables: Tables, names: Names) -> None:
        self.t, self.names = tables, names
        self._indices()
        self.stream = self._streams()
        self.program = tables["streams"]["program"][self.stream].astype(np.int64)
        self.programs = int(tables["streams"]["program"].max()) + 1
        rows, owner = self.rows("region")
        regions = tables["regions"]
        if not np.array_equal(rows, np.arange(len(regions))):
            regions = regions[rows]
        touching = (regions["row_begin"] < regions["row_end"]) & (regions["col_begin"] < regions["col_end"])
        if not touching.all():
            regions, owner = regions[touching], owner[touching]
        self.touched, self.toucher = regions, owner
        constant = (regions["mode"] == fmt.READ) & (tables["buffers"]["arena"][regions["buffer"]] == WEIGHT)
        self.regions, self.owner = regions[~constant], owner[~constant]

    @cached_property
    def waits(self) -> list[list[tuple[int, int]]]:
        """(event, count) of each instruction's waits."""
        return self._lists("wait", self.t["waits"].tolist())

    @cached_property
    def notifies(self) -> list[list[int]]:
        """The events that each instruction notifies."""
        return self._lists("notify", self.t["notifies"]["event"].tolist())

    def _lists(self, field: str, rows: list[Any]) -> list[list[Any]]:
        ins = self.t["instructions"]
        spans = zip(ins[f"{field}_begin"].tolist(), ins[f"{field}_count"].tolist(), strict=True)
        return [rows[b : b + n] for b, n in spans]

    def rows(self, field: str) -> tuple[Ints, Ints]:
        """The rows of a table that instructions refer to, and whose they are, in the order of the instructions."""
        return entries(self.t["instructions"], field)

    def streams_of(self, program: int) -> list[list[int]]:
        """The instructions of each stream of a program, in order."""
        return [list(range(int(s["begin"]), int(s["end"]))) for s in self.t["streams"] if int(s["program"]) == program]

    def name(self, i: int) -> str:
        """An instruction in words."""
        ins = self.t["instructions"][i]
        op = int(ins["op"])
        operator = self.names.operators[op] if op < len(self.names.operators) else f"operator-{op}"
        return f"instruction {i} ({operator} tile {tuple(map(int, ins['tile'][:3]))})"

    def buffer(self, b: int) -> str:
        """A buffer in words."""
        return f"{self.names.buffers[b]} (buffer {b})" if b < len(self.names.buffers) else f"buffer {b}"

    def tensor(self, b: int) -> str:
        """The tensor that a buffer holds."""
        return self.names.buffers[b] if b < len(self.names.buffers) else f"buffer {b}"

    def weight(self, w: int) -> str:
        """A streamed weight in words."""
        return self.names.weights[w] if w < len(self.names.weights) else f"weight {w}"

    def box(self, region: Any) -> str:
        """A region in words."""
        rows, cols = (f"{int(region[f'{d}_begin'])}:{int(region[f'{d}_end'])}" for d in ("row", "col"))
        return f"{self.buffer(int(region['buffer']))} [{rows}, {cols}]"

    def _indices(self) -> None:
        t = self.t
        if not len(t["instructions"]):
            raise VerifyError("there are no instructions")
        for field, table in SPANS.items():
            ends = t["instructions"][f"{field}_begin"].astype(np.int64) + t["instructions"][f"{field}_count"]
            for i in np.flatnonzero(ends > len(t[table]))[:1]:
                raise VerifyError(f"{self.name(int(i))}: its {table} end at {ends[i]} of {len(t[table])}")
        for table, field, target in _INDICES:
            values = t[table][field].astype(np.int64)
            absent = (values == fmt.NONE) & (field == "second")
            for i in np.flatnonzero((values >= len(t[target])) & ~absent)[:1]:
                raise VerifyError(f"{table} {i} names {target} {values[i]} of {len(t[target])}")
        for i in np.flatnonzero(t["regions"]["mode"] > fmt.WRITE)[:1]:
            raise VerifyError(f"regions {i} has mode {t['regions']['mode'][i]}, want {fmt.READ} or {fmt.WRITE}")

    def _streams(self) -> Ints:
        """The stream of each instruction. One stream for each agent of a worker in each program."""
        streams, total = self.t["streams"], len(self.t["instructions"])
        for field in ("program", "device", "worker"):
            for number in np.flatnonzero(streams[field] >= len(streams))[:1]:
                raise VerifyError(f"stream {number} is of {field} {streams[field][number]}, with {len(streams)} in all")
        times, stream = np.zeros(total, np.int64), np.zeros(total, np.int64)
        agents: set[tuple[int, ...]] = set()
        device: dict[int, int] = {}
        for number, s in enumerate(streams):
            if s["begin"] > s["end"] or s["end"] > total:
                raise VerifyError(f"stream {number} runs instructions {s['begin']} to {s['end']} of {total}")
            times[s["begin"] : s["end"]] += 1
            stream[s["begin"] : s["end"]] = number
            key = tuple(int(s[f]) for f in ("program", "worker", "agent"))
            if key in agents:
                raise VerifyError(f"program {key[0]} has two streams for agent {key[2]} of worker {key[1]}, want 1")
            agents.add(key)
            if device.setdefault(key[1], int(s["device"])) != s["device"]:
                raise VerifyError(f"worker {key[1]} has streams on devices {device[key[1]]} and {s['device']}")
        for i in np.flatnonzero(times != 1)[:1]:
            raise VerifyError(f"{self.name(int(i))} is in {times[i]} streams, want 1")
        for program in sorted(set(range(int(streams["program"].max()) + 1)) - {p for p, *_ in agents})[:1]:
            raise VerifyError(f"program {program} has no streams")
        return stream


def uncovered(regions: Any, boxes: Any, among: Bools) -> Ints:
    """Numbers of the regions [n] that some boxes [m] don't cover, each those that `among` bool [n, m] gives it.

    Boxes that are apart cover a region exactly if their parts of it add up to it; others are compared cell by cell.
    One of equal regions with the same boxes stands for all, and the first of them is returned.
    """
    packed = np.packbits(among, axis=1)
    first: dict[bytes, int] = {}
    for i in range(len(regions)):
        first.setdefault(regions[i].tobytes() + packed[i].tobytes(), i)
    some = np.array(list(first.values()), np.int64)
    if overlaps(boxes, boxes).sum() == len(boxes):  # each meets itself only
        size, part = np.ones(len(some), np.int64), among[some].astype(np.int64)
        for lo, hi in (("row_begin", "row_end"), ("col_begin", "col_end")):
            begin, end = (regions[field][some].astype(np.int64) for field in (lo, hi))
            size *= end - begin
            ends = np.minimum(end[:, None], boxes[hi])
            part *= np.maximum(ends - np.maximum(begin[:, None], boxes[lo]), 0)
        return np.asarray(some[part.sum(axis=1) != size])
    return np.array([i for i in some.tolist() if not covered(regions[i], boxes[among[i]])], np.int64)


def covered(region: Any, boxes: Any) -> bool:
    """Whether the boxes together cover the region, decided cell by cell on the grid of all their bounds."""
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


def overlaps(a: Any, b: Any) -> Bools:
    """bool [a, b]: whether regions meet."""
    rows = (a["row_begin"][:, None] < b["row_end"]) & (b["row_begin"] < a["row_end"][:, None])
    cols = (a["col_begin"][:, None] < b["col_end"]) & (b["col_begin"] < a["col_end"][:, None])
    return np.asarray(rows & cols)
