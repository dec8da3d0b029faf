"""From an engine's tables to launches: which operators of one device can run in the same one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime import format as fmt
from tilecompile.runtime.folder.rows import entries, expanded
from tilecompile.runtime.folder.tables import Tables

Ints = npt.NDArray[np.int64]


def instructions_of(tables: Tables, device: int, program: int = 0) -> Ints:
    """The instructions of one device's streams in a program, but for sinks, which no launch runs."""
    streams = tables["streams"]
    mine = streams[(streams["program"] == program) & (streams["device"] == device) & (streams["agent"] == 0)]
    found = expanded(mine["begin"], mine["end"].astype(np.int64) - mine["begin"])
    return found[tables["instructions"]["kind"][found] != fmt.COMMIT_KIND]


def levels(tables: Tables, device: int, program: int = 0) -> list[Ints]:
    """The instructions of one device, divided into launches.

    Operators are taken in their order in the engine, which is one that its events allow. One goes into the first launch
    after all those that write what it touches or touch what it writes.
    """
    mine = instructions_of(tables, device, program)
    rows = tables["instructions"][mine]
    entry, owner = entries(rows, "region")
    regions = tables["regions"][entry]
    ops = rows["op"].astype(np.int64)
    spans, writes = _pieces(tables, regions), regions["mode"] == fmt.WRITE
    touched = np.unique(np.stack([ops[owner], writes, *spans]), axis=1)
    written, read = np.zeros((2, int(touched[3].max(initial=0))), np.int64)  # levels so far, of each piece of memory
    at: dict[int, int] = {}
    for op in np.unique(ops).tolist():
        of_op = touched[:, touched[0] == op]
        level = 0
        for _, write, begin, end in of_op.T.tolist():
            level = max(level, written[begin:end].max(), read[begin:end].max() if write else 0)
        at[op] = int(level)
        for _, write, begin, end in of_op.T.tolist():
            into = written if write else read
            into[begin:end] = np.maximum(into[begin:end], level + 1)
    level_of = np.array([at[op] for op in ops.tolist()])
    order = np.argsort(level_of, kind="stable")
    return [mine[part] for part in np.split(order, np.searchsorted(level_of[order], np.arange(1, level_of.max() + 1)))]


def _pieces(tables: Tables, regions: npt.NDArray[Any]) -> tuple[Ints, Ints]:
    """For regions, the pieces (begin, end) of memory that each touches: pieces are what no region's end divides.

    A region of some columns of several rows counts as its whole buffer.
    """
    rows = tables["buffers"][regions["buffer"]]
    cols, first, last = (x.astype(np.int64) for x in (rows["cols"], regions["row_begin"], regions["row_end"]))
    element = np.array([fmt.DTYPE_BYTES[name] for name in fmt.DTYPES])[rows["dtype"]]
    left, right = regions["col_begin"].astype(np.int64), regions["col_end"].astype(np.int64)
    line = (last - first == 1) | ((left == 0) & (right == cols))
    begin = np.where(line, (first * cols + left) * element, 0)
    end = np.where(line, ((last - 1) * cols + right) * element, rows["bytes"].astype(np.int64))
    # Arenas of all devices one behind the other.
    place = (rows["device"].astype(np.int64) * len(fmt.ARENAS) + rows["arena"]) << 44
    begin, end = begin + place + rows["offset"].astype(np.int64), end + place + rows["offset"].astype(np.int64)
    cuts = np.unique(np.concatenate([begin, end]))
    return np.searchsorted(cuts, begin), np.searchsorted(cuts, end)


def task_rows(instructions: Ints, runs: npt.NDArray[Any], dtype: np.dtype[np.void]) -> npt.NDArray[Any]:
    """A TaskRow for each instruction; its runs are those of `runs` that name it, which are next to each other."""
    order = np.argsort(runs["instruction"], kind="stable")
    named = runs["instruction"][order].astype(np.int64)
    first, last = np.searchsorted(named, instructions), np.searchsorted(named, instructions, "right")
    out = np.zeros(len(instructions), dtype)
    out["instruction"] = instructions
    some = last > first
    out["run_begin"][some] = order[first[some]]
    out["run_end"][some] = order[last[some] - 1] + 1
    if not np.array_equal(out["run_end"] - out["run_begin"], last - first):
        raise AssertionError("the runs of an instruction are not next to each other")
    return out
