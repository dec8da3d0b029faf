"""Programs that are stored short: the rows of one period of layers stand for many (`repeats` in `runtime/format`).

`expand` gives the tables of the whole program. It is the one rule of what a short program means: the compiler proves
its result, and whoever needs the whole program takes it from here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.folder.rows import SPANS, entries, expanded, offsets, owners
from tilecompile.runtime.format import ARENAS, LINES, NONE

Table = npt.NDArray[np.void]
Ints = npt.NDArray[np.int64]

WEIGHT = ARENAS.index("weight")

BEFORE, IN, AFTER = range(3)
"""Where a row stands: before the repeated rows of its stream or table, among them, after them."""


class Line:
    """Numbers 0, 1, 2, … of which the intervals begin:end (in ascending order) stand `times` times each."""

    def __init__(self, begin: Ints, end: Ints, times: int) -> None:
        order = np.lexsort((end, begin))
        self.begin, self.end, self.times = begin[order], end[order], times
        self.length = self.end - self.begin
        self.gain = np.cumsum(self.length) * (times - 1)  # behind each interval

    def rows(self, count: int) -> tuple[Ints, Ints]:
        """For each number of the whole program: which of the `count` stored ones it is, and in which copy."""
        if not len(self.begin):
            return np.arange(count), np.zeros(count, np.int64)
        each = np.full((len(self.begin), self.times + 1), 0, np.int64)  # a gap, then the copies
        start = np.repeat(self.begin[:, None], self.times + 1, 1)
        start[:, 0] = np.append(0, self.end[:-1])
        each[:, 0], each[:, 1:] = self.begin - start[:, 0], self.length[:, None]
        copy = np.tile(np.append(0, np.arange(self.times)), len(self.begin))
        starts, lengths = np.append(start, self.end[-1]), np.append(each, count - self.end[-1])
        return expanded(starts, lengths), np.repeat(np.append(copy, 0), lengths)

    def inside(self, x: Ints) -> npt.NDArray[np.bool_]:
        """Whether stored numbers are in an interval."""
        if not len(self.begin):
            return np.zeros(len(x), np.bool_)
        found = np.searchsorted(self.begin, x, side="right") - 1
        return np.asarray((found >= 0) & (x < self.end[np.maximum(found, 0)]))

    def at(self, x: Ints, copy: Ints | int) -> Ints:
        """The number in the whole program of a stored number, in a copy if it is in an interval."""
        if not len(self.begin):
            return x
        found = np.searchsorted(self.begin, x, side="right") - 1
        i = np.maximum(found, 0)
        inside = (found >= 0) & (x < self.end[i])
        behind = np.where(found >= 0, self.gain[i], 0)
        return np.asarray(x + behind - np.where(inside, (self.times - 1 - copy) * self.length[i], 0))

    def referred(self, x: Ints, copy: Ints, phase: Ints) -> Ints:
        """The numbers in the whole program that rows refer to; each row is a copy of a stored row of a phase."""
        if not len(self.begin):
            return x
        at = np.where(phase == AFTER, self.times - 1, np.where(phase == IN, copy, 0))
        i = np.searchsorted(self.begin, x, side="right")
        following, own = np.minimum(i, len(self.begin) - 1), np.maximum(i - 1, 0)
        outside = (phase == IN) & ((i == 0) | (x >= self.end[own]))
        before = (x < self.begin[following]) & (x >= self.begin[following] - self.length[following])
        before &= outside & (copy > 0)
        after = (i > 0) & (x < self.end[own] + self.length[own]) & outside & (copy < self.times - 1) & ~before
        moved = x + np.where(before, self.length[following], 0) - np.where(after, self.length[own], 0)
        return self.at(moved, at - before + after)


def expand(tables: Mapping[str, Table]) -> dict[str, Table]:
    """The tables of the whole program, without `repeats`' rows; the same tables where there are none.

    Rows of waits, notifies, tape and regions must stand in the order of their instructions, as the compiler makes them.
    """
    repeats = tables["repeats"]
    if not len(repeats):
        return dict(tables)
    times = int(repeats["times"][0])
    line = {name: _line(repeats, i, times) for i, name in enumerate(LINES)}
    out = {"repeats": repeats[:0], **{name: tables[name] for name in ("bodies", "views", "accesses")}}
    out["streams"] = streams = tables["streams"].copy()
    for field in ("begin", "end"):
        streams[field] = line["instructions"].at(streams[field].astype(np.int64), 0)
    row, copy = line["instructions"].rows(len(tables["instructions"]))
    stream = owners(streams["end"] - streams["begin"])
    bounds = repeats[repeats["line"] == LINES.index("instructions")]
    phase = _phase(row, bounds["begin"][stream], bounds["end"][stream])
    out["instructions"] = ins = tables["instructions"][row]
    ins["op"] = line["operators"].referred(ins["op"].astype(np.int64), copy, phase)
    ins["operand_begin"] = line["operands"].referred(ins["operand_begin"].astype(np.int64), copy, phase)
    arenas = _arenas(tables, line["tiles"], line["buffers"])
    for field in ("wait", "notify", "tape", "region"):
        rows, owner = entries(ins, field)
        if field == "tape":
            prefetch = ins["prefetch"].astype(np.int64)
            hinted = _of(tables["instructions"], line["instructions"], "tape").referred(prefetch, copy, phase)
            ins["prefetch"] = np.where(prefetch == NONE, NONE, hinted)
        ins[f"{field}_begin"] = offsets(ins[f"{field}_count"])[:-1]
        out[SPANS[field]] = found = tables[SPANS[field]][rows]
        copies, phases = copy[owner], phase[owner]
        if field == "tape":
            device = streams["device"][stream][owner]
            for (d, arena), places in arenas.items():
                of = np.flatnonzero((device == d) & (arena == WEIGHT))
                found["offset"][of] = places.referred(found["offset"][of].astype(np.int64), copies[of], phases[of])
        name, to = {"tape": ("tile", "tiles"), "region": ("buffer", "buffers")}.get(field, ("event", "events"))
        found[name] = line[to].referred(found[name].astype(np.int64), copies, phases)
    _rest(tables, line, arenas, out)
    return {name: out[name] for name in tables}


def expanded_sizes(tables: Mapping[str, Table], arenas: Ints) -> Ints:
    """Bytes of the arenas of the whole program: int64 [devices, len(ARENAS)], pools as weight arenas."""
    repeats, out = tables["repeats"], arenas.copy()
    if len(repeats):
        times = int(repeats["times"][0])
        tiles, buffers = (_line(repeats, LINES.index(name), times) for name in ("tiles", "buffers"))
        for key, line in _arenas(tables, tiles, buffers).items():
            out[key] += line.gain[-1]
    return out


def line_of(tables: Mapping[str, Table], name: str) -> Line:
    """A line of the program by its name in LINES."""
    times = int(tables["repeats"]["times"][0]) if len(tables["repeats"]) else 1
    return _line(tables["repeats"], LINES.index(name), times)


def _line(repeats: Table, line: int, times: int) -> Line:
    mine = repeats[repeats["line"] == line]
    return Line(mine["begin"].astype(np.int64), mine["end"].astype(np.int64), times)


def _phase(row: Ints, begin: Ints, end: Ints) -> Ints:
    return np.where(row < begin, BEFORE, np.where(row < end, IN, AFTER))


def _of(instructions: Table, line: Line, field: str) -> Line:
    """The line of the rows that instructions refer to in order, from the line of the instructions."""
    begin = offsets(instructions[f"{field}_count"])
    return Line(begin[line.begin], begin[line.end], line.times)


def _rest(
    tables: Mapping[str, Table], line: Mapping[str, Line], arenas: Mapping[tuple[int, int], Line], out: dict[str, Table]
) -> None:
    """The tables whose rows don't belong to instructions."""
    for name in ("operands", "events", "buffers", "weights", "tiles", "operators"):
        row, copy = line[name].rows(len(tables[name]))
        # What comes before the repeated rows of a program refers to none of them, so it may count as coming after.
        phase = np.where(line[name].inside(row), IN, AFTER)
        out[name] = found = tables[name][row]
        if name == "operands":
            found["buffer"] = line["buffers"].referred(found["buffer"].astype(np.int64), copy, phase)
        for program, numbers in _event_tensors(tables).items() if name == "events" else ():
            of = np.flatnonzero(found["program"] == program)
            found["tensor"][of] = numbers.referred(found["tensor"][of].astype(np.int64), copy[of], phase[of])
        if name == "operators":
            begin = found["operand_begin"].astype(np.int64)
            found["operand_begin"] = line["operands"].referred(begin, copy, phase)
            for field in ("weight", "second"):
                value = found[field].astype(np.int64)
                found[field] = np.where(value == NONE, NONE, line["weights"].referred(value, copy, phase))
        if name == "tiles":
            for field in ("tensor", "second"):
                value = found[field].astype(np.int64)
                found[field] = np.where(value == NONE, NONE, line["weights"].at(value, copy))
        for (d, arena), places in arenas.items() if name in ("buffers", "tiles") else ():
            of = found["device"] == d
            of &= found["arena"] == arena if name == "buffers" else arena == WEIGHT
            found["offset"][of] = places.at(found["offset"][of].astype(np.int64), copy[of])


def _event_tensors(tables: Mapping[str, Table]) -> dict[int, Line]:
    """The repeated event tensors of each program that has any: each numbers its own."""
    repeats, found = tables["repeats"], {}
    of_events, of_tensors = (repeats[repeats["line"] == LINES.index(name)] for name in ("events", "event_tensors"))
    for events, tensors in zip(of_events, of_tensors, strict=True):
        if events["begin"] < events["end"]:
            begin, end = (np.array([int(tensors[field])]) for field in ("begin", "end"))
            found[int(tables["events"]["program"][events["begin"]])] = Line(begin, end, int(tensors["times"]))
    return found


def _arenas(tables: Mapping[str, Table], tiles: Line, buffers: Line) -> dict[tuple[int, int], Line]:
    """The repeated bytes of each device's arenas: from the first repeated row stored there to the first row after it.

    Pools are the weight arenas; buffers with constants follow the tiles.
    """
    places: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    rows = tables["tiles"]
    some = np.flatnonzero(tiles.length)
    begin, end = tiles.begin[some], np.minimum(tiles.end[some], len(rows) - 1)
    for device, first, last in zip(rows["device"][begin], rows["offset"][begin], rows["offset"][end], strict=True):
        places[int(device), WEIGHT].append((int(first), int(last)))
    rows = tables["buffers"]
    for begin, end in zip(buffers.begin.tolist(), buffers.end.tolist(), strict=True):
        for device, arena in np.unique(rows[["device", "arena"]][begin:end]).tolist():
            same = (rows["device"] == device) & (rows["arena"] == arena)
            first, last = (rows["offset"][at:][same[at:]][0] for at in (begin, end))
            places[device, arena].append((int(first), int(last)))
    spans = {key: np.array(found, np.int64) for key, found in places.items()}
    return {key: Line(span[:, 0], span[:, 1], tiles.times) for key, span in spans.items()}
