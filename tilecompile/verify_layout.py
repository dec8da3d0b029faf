"""verify, part: regions within buffers, and where buffers and weight tiles lie in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilecompile.runtime import format as fmt
from tilecompile.verify_base import ACTIVATION, WEIGHT, Ints, Subject, VerifyError


@dataclass(frozen=True)
class Memory:
    """What there is: bytes of each arena (int64 [devices, len(ARENAS)], pools as weight arenas), and of all of them."""

    arenas: Ints
    limit: int | None = None


@dataclass(frozen=True)
class _Span:
    """Bytes of an arena that a buffer or a tile takes."""

    begin: int
    end: int
    name: str


def check_layout(s: Subject, memory: Memory | None) -> int:
    """Checks regions, buffers and tiles; returns the number of spans of memory that were checked."""
    _regions(s)
    _buffers(s)
    arenas: dict[tuple[int, int], list[_Span]] = {}
    rows = s.t["buffers"]
    spans = [_Span(int(b["offset"]), int(b["offset"]) + int(b["bytes"]), f"{s.buffer(i)}") for i, b in enumerate(rows)]
    for i, b in enumerate(rows):
        arenas.setdefault((int(b["device"]), int(b["arena"])), []).append(spans[i])
    for i, tile in enumerate(s.t["tiles"]):
        end = int(tile["offset"]) + int(tile["bytes"]) * int(tile["copies"])
        span = _Span(int(tile["offset"]), end, f"tile {i} of {s.weight(int(tile['tensor']))}")
        arenas.setdefault((int(tile["device"]), WEIGHT), []).append(span)
    for (device, arena), found in arenas.items():
        _inside(found, device, arena, memory)
        if arena != ACTIVATION:
            _apart(found, device, arena)
    for device, program, members in _scratch(s):
        _apart([spans[b] for b in members], device, ACTIVATION, f" of program {program}")
    if memory is not None and memory.limit is not None and int(memory.arenas.sum()) > memory.limit:
        raise VerifyError(f"arenas and pools take {int(memory.arenas.sum())} bytes, the limit is {memory.limit}")
    return sum(map(len, arenas.values()))


def _regions(s: Subject) -> None:
    of = s.t["buffers"][s.regions["buffer"]]
    outside = (s.regions["row_end"] > of["rows"]) | (s.regions["col_end"] > of["cols"])
    for r in np.flatnonzero(outside)[:1]:
        where, size = s.box(s.regions[r]), f"[{of['rows'][r]}, {of['cols'][r]}]"
        raise VerifyError(f"{s.name(int(s.owner[r]))} touches {where}, which is {size}")
    constant = (s.regions["mode"] == fmt.WRITE) & (of["arena"] == WEIGHT)
    for r in np.flatnonzero(constant)[:1]:
        raise VerifyError(f"{s.name(int(s.owner[r]))} writes {s.box(s.regions[r])}, which holds weights")


def _buffers(s: Subject) -> None:
    """Checks that buffers have a known kind of memory and room for their matrix, and operands begin inside them."""
    for i, b in enumerate(s.t["buffers"]):
        if b["arena"] >= len(fmt.ARENAS) or b["dtype"] >= len(fmt.DTYPES):
            raise VerifyError(f"{s.buffer(i)} has arena {b['arena']} and dtype {b['dtype']}")
        size = int(b["rows"]) * int(b["cols"]) * fmt.DTYPE_BYTES[fmt.DTYPES[int(b["dtype"])]]
        if size > b["bytes"]:
            raise VerifyError(f"{s.buffer(i)} has {b['bytes']} bytes for a matrix of {size}")
    rows, owner = s.rows("operand")
    operands = s.t["operands"][rows]
    outside = operands["offset"] > s.t["buffers"]["bytes"][operands["buffer"]]
    for k in np.flatnonzero(outside)[:1]:
        where = s.buffer(int(operands["buffer"][k]))
        raise VerifyError(f"{s.name(int(owner[k]))} has an operand {operands['offset'][k]} bytes into {where}")


def _inside(spans: list[_Span], device: int, arena: int, memory: Memory | None) -> None:
    """Checks alignment, and that spans end inside their arena."""
    name = f"arena {fmt.ARENAS[arena]} of device {device}"
    for span in spans:
        if span.begin % fmt.ALIGN:
            raise VerifyError(f"{span.name} lies at {span.begin} in {name}, not at a multiple of {fmt.ALIGN}")
        if memory is not None and (device >= len(memory.arenas) or span.end > memory.arenas[device, arena]):
            size = memory.arenas[device, arena] if device < len(memory.arenas) else 0
            raise VerifyError(f"{span.name} ends at {span.end} in {name}, which has {size} bytes")


def _apart(spans: list[_Span], device: int, arena: int, which: str = "") -> None:
    """Checks that no two spans meet."""
    last: _Span | None = None
    for span in sorted(spans, key=lambda x: (x.begin, x.end)):
        if last is not None and span.begin < last.end and span.begin < span.end:
            raise VerifyError(
                f"{last.name} and {span.name} overlap in arena {fmt.ARENAS[arena]} of device {device}{which}"
            )
        if last is None or span.end > last.end:
            last = span


def _scratch(s: Subject) -> list[tuple[int, int, list[int]]]:
    """The activation buffers that must not overlap: by device and program, those that the program touches.

    What no program touches is taken as touched by all.
    """
    total = len(s.t["buffers"])
    touched = np.zeros((s.programs, total), bool)
    touched[s.program[s.owner], s.regions["buffer"]] = True
    rows, owner = s.rows("operand")
    touched[s.program[owner], s.t["operands"]["buffer"][rows]] = True
    touched |= ~touched.any(0)
    of = s.t["buffers"]
    return [
        (int(device), program, np.flatnonzero(mine & (of["arena"] == ACTIVATION) & (of["device"] == device)).tolist())
        for device in np.unique(of["device"])
        for program, mine in enumerate(touched)
    ]
