"""verify, part: regions within buffers, and the places of buffers and weight tiles in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilecompile.runtime import format as fmt
from tilecompile.verify.base import ACTIVATION, WEIGHT, Ints, Subject, VerifyError


@dataclass(frozen=True)
class Memory:
    """Sizes in bytes: of each arena, int64 [devices, len(ARENAS)] (pools as weight arenas), and the limit of all."""

    arenas: Ints
    limit: int | None = None


class _Spans:
    """Bytes of the arenas that buffers and, after them, tiles take: int64 [n] each."""

    def __init__(self, s: Subject) -> None:
        self.s, buffers, tiles = s, s.t["buffers"], s.t["tiles"]
        weight = np.full(len(tiles), WEIGHT)
        self.device, self.begin = (
            np.concatenate([buffers[f], tiles[f]]).astype(np.int64) for f in ("device", "offset")
        )
        self.arena = np.concatenate([buffers["arena"].astype(np.int64), weight])
        size = np.concatenate([buffers["bytes"], tiles["bytes"] * tiles["copies"]]).astype(np.int64)
        self.end = self.begin + size

    def name(self, i: int) -> str:
        """A span in words."""
        tile = i - len(self.s.t["buffers"])
        return (
            self.s.buffer(i) if tile < 0 else f"tile {tile} of {self.s.weight(int(self.s.t['tiles'][tile]['tensor']))}"
        )


def check_regions(s: Subject) -> None:
    """Checks the regions that instructions declare, and that the scratch buffers of a program don't overlap."""
    _regions(s)
    _operands(s)
    for program, members in _scratch(s):
        _apart(_Spans(s), members, ACTIVATION, f" of program {program}")


def check_places(s: Subject, memory: Memory | None) -> int:
    """Checks buffers and tiles, except overlaps in scratch memory; returns the number of spans that were checked."""
    _buffers(s)
    spans = _Spans(s)
    _inside(spans, memory)
    for arena in np.unique(spans.arena[spans.arena != ACTIVATION]).tolist():
        _apart(spans, np.flatnonzero(spans.arena == arena), arena)
    if memory is not None and memory.limit is not None and int(memory.arenas.sum()) > memory.limit:
        raise VerifyError(f"arenas and pools take {int(memory.arenas.sum())} bytes, the limit is {memory.limit}")
    return len(spans.begin)


def check_packed(s: Subject, memory: Memory) -> None:
    """Checks that pools have no gaps: places there are also those of a file's bytes, which no other table states.

    Behind a buffer there are ALIGN bytes of padding, as bodies load whole vectors.
    """
    spans = _Spans(s)
    room = spans.end - spans.begin + np.where(np.arange(len(spans.end)) < len(s.t["buffers"]), fmt.ALIGN, 0)
    after = spans.begin + -(-room // fmt.ALIGN) * fmt.ALIGN
    for device, size in enumerate(memory.arenas[:, WEIGHT].tolist()):
        mine = np.flatnonzero((spans.arena == WEIGHT) & (spans.device == device))
        mine = mine[np.argsort(spans.begin[mine], kind="stable")]
        want = np.append(0, after[mine])
        for k in np.flatnonzero(np.append(spans.begin[mine], size) != want)[:1].tolist():
            what = f"{spans.name(int(mine[k]))} is at {spans.begin[mine[k]]}" if k < len(mine) else f"it ends at {size}"
            raise VerifyError(f"the pool of device {device} has a gap: {what}, want {want[k]}")


def _regions(s: Subject) -> None:
    buffers, regions = s.t["buffers"], s.touched
    at = regions["buffer"]
    rows, cols = buffers["rows"][at], buffers["cols"][at]
    outside = (regions["row_end"] > rows) | (regions["col_end"] > cols)
    for r in np.flatnonzero(outside)[:1]:
        where, size = s.box(regions[r]), f"[{rows[r]}, {cols[r]}]"
        raise VerifyError(f"{s.name(int(s.toucher[r]))} touches {where}, which is {size}")
    constant = (regions["mode"] == fmt.WRITE) & (buffers["arena"] == WEIGHT)[at]
    for r in np.flatnonzero(constant)[:1]:
        raise VerifyError(f"{s.name(int(s.toucher[r]))} writes {s.box(regions[r])}, which holds weights")


def _buffers(s: Subject) -> None:
    """Checks that buffers have a known kind of memory, and the size of their matrix."""
    buffers = s.t["buffers"]
    for i in np.flatnonzero((buffers["arena"] >= len(fmt.ARENAS)) | (buffers["dtype"] >= len(fmt.DTYPES)))[:1].tolist():
        raise VerifyError(f"{s.buffer(i)} has arena {buffers['arena'][i]} and dtype {buffers['dtype'][i]}")
    element = np.array([fmt.DTYPE_BYTES[name] for name in fmt.DTYPES])[buffers["dtype"]]
    size = buffers["rows"].astype(np.int64) * buffers["cols"] * element
    for i in np.flatnonzero(size != buffers["bytes"].astype(np.int64))[:1].tolist():
        raise VerifyError(f"{s.buffer(i)} has {buffers['bytes'][i]} bytes for a matrix of {size[i]}")


def _operands(s: Subject) -> None:
    rows, owner = s.rows("operand")
    operands = s.t["operands"][rows]
    outside = operands["offset"] > s.t["buffers"]["bytes"][operands["buffer"]]
    for k in np.flatnonzero(outside)[:1]:
        where = s.buffer(int(operands["buffer"][k]))
        raise VerifyError(f"{s.name(int(owner[k]))} has an operand {operands['offset'][k]} bytes into {where}")


def _inside(spans: _Spans, memory: Memory | None) -> None:
    """Checks alignment, and that spans end inside their arena."""

    def where(i: int) -> str:
        return f"in arena {fmt.ARENAS[spans.arena[i]]} of device {spans.device[i]}"

    for i in np.flatnonzero(spans.begin % fmt.ALIGN)[:1].tolist():
        raise VerifyError(f"{spans.name(i)} is at {spans.begin[i]} {where(i)}, not at a multiple of {fmt.ALIGN}")
    if memory is not None:
        devices = len(memory.arenas)
        there = spans.device < devices
        sizes = np.where(there, memory.arenas[np.minimum(spans.device, devices - 1), spans.arena], 0)
        for i in np.flatnonzero(~there | (spans.end > sizes))[:1].tolist():
            raise VerifyError(f"{spans.name(i)} ends at {spans.end[i]} {where(i)}, which has {sizes[i]} bytes")


def _apart(spans: _Spans, members: Ints, arena: int, which: str = "") -> None:
    """Checks that no two of the spans, all of one arena, overlap on any device."""
    members = members[np.lexsort((spans.end[members], spans.begin[members], spans.device[members]))]
    device, begin, end = spans.device[members], spans.begin[members], spans.end[members]
    top = int(spans.end.max(initial=0)) + 1
    reach = np.maximum.accumulate(end + device * top) - device * top  # of the device's spans so far
    meets = (device[1:] == device[:-1]) & (begin[1:] < reach[:-1]) & (begin[1:] < end[1:])
    for k in np.flatnonzero(meets)[:1].tolist():
        first = np.flatnonzero((device[: k + 1] == device[k + 1]) & (end[: k + 1] == reach[k]))[-1]
        raise VerifyError(
            f"{spans.name(int(members[first]))} and {spans.name(int(members[k + 1]))} overlap in arena "
            f"{fmt.ARENAS[arena]} of device {device[k]}{which}"
        )


def _scratch(s: Subject) -> list[tuple[int, Ints]]:
    """The activation buffers that must not overlap: by program, those that the program touches.

    What no program touches is taken as touched by all.
    """
    touched = np.zeros((s.programs, len(s.t["buffers"])), bool)
    touched[s.program[s.owner], s.regions["buffer"]] = True
    rows, owner = s.rows("operand")
    touched[s.program[owner], s.t["operands"]["buffer"][rows]] = True
    touched |= ~touched.any(0)
    scratch = s.t["buffers"]["arena"] == ACTIVATION
    return [(program, np.flatnonzero(mine & scratch)) for program, mine in enumerate(touched)]
