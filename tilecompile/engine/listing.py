"""The readable listing of a program's tables, printed beside them; kernels execute the tables."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tilecompile.engine.plan import Plan
from tilecompile.ir.program import PlacedBuffer
from tilecompile.runtime import format as fmt
from tilecompile.runtime.folder.rows import SPANS, span


def listing(plan: Plan) -> str:
    """Every stream with its instructions: body, operator, tile, waits, notifies, weight runs, regions; then buffers.

    Of a short plan, first which of its layers are repeated how often.
    """
    program, repeat = plan.stored, plan.repeat
    tables, programs, buffers = program.tables, program.programs, program.buffers
    out = []
    if repeat is not None:
        last = repeat.layer + repeat.layers - 1
        out.append(f"short: layers {repeat.layer} to {last} stand {repeat.times} times")
    for stream in tables["streams"]:
        begin, end = int(stream["begin"]), int(stream["end"])
        out.append(
            f"program {programs[int(stream['program'])]} device {stream['device']} worker {stream['worker']} "
            f"agent {stream['agent']}: {end - begin} instructions"
        )
        out += [
            f"  {i:6} {_instruction(tables, i, program.operators, program.kinds, buffers)}" for i in range(begin, end)
        ]
    out.append("buffers")
    for b in buffers:
        t = b.tensor
        shape = ",".join(map(str, t.shape))
        out.append(f"  B{b.index} device {b.device} {b.arena}+{b.offset} {b.bytes} B  {t.name}[{shape}] {t.dtype}")
    return "\n".join(out) + "\n"


def _instruction(
    tables: Mapping[str, npt.NDArray[np.void]],
    index: int,
    operators: list[str],
    kinds: list[str],
    buffers: list[PlacedBuffer],
) -> str:
    ins = tables["instructions"][index]

    def part(field: str) -> npt.NDArray[np.void]:
        return tables[SPANS[field]][span(ins, field)]

    text = [f"{kinds[int(ins['kind'])]} {operators[int(ins['op'])]} tile {','.join(map(str, ins['tile']))}"]
    if len(waits := part("wait")):
        text.append("wait " + " ".join(f"e{w['event']}>={w['count']}n" for w in waits))
    if len(tape := part("tape")):
        text.append("stream " + " ".join(_run(r) for r in tape))
    regions = part("region")
    for mode, word in ((fmt.READ, "reads"), (fmt.WRITE, "writes")):
        boxes = [
            f"{buffers[int(r['buffer'])].tensor.name}[{r['row_begin']}:{r['row_end']},{r['col_begin']}:{r['col_end']}]"
            for r in regions
            if r["mode"] == mode
        ]
        if boxes:
            text.append(f"{word} {' '.join(boxes)}")
    if len(notifies := part("notify")):
        text.append("notify " + " ".join(f"e{n['event']}" for n in notifies))
    return "; ".join(text)


def _run(run: np.void) -> str:
    slot = f" of slot {run['slot']} every {run['stride']}" if run["slot"] >= 0 else ""
    return f"[{run['offset']}+{run['bytes']}{slot}]"
