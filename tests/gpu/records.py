"""The parameters of the script's own kernels as numpy records: see tasks.cuh and measure.cuh."""

from __future__ import annotations

import numpy as np


def _record(*fields: tuple[str, str]) -> np.dtype[np.void]:
    return np.dtype([(name, "<" + kind) for name, kind in fields], align=True)


TASK_ROW = _record(("instruction", "u4"), ("run_begin", "u4"), ("run_end", "u4"), ("reserved", "u4"))
TASK_LAUNCH = _record(
    *((name, "u8") for name in ("instructions", "operands", "runs", "rows", "step", "failed", "stall_ns")),
    ("first", "u4"),
    ("reserved", "u4"),
)
STREAM_LAUNCH = _record(
    *((name, "u8") for name in ("memory", "bytes", "run_bytes", "failed")), ("times", "u4"), ("blocks", "u4")
)
PING_LAUNCH = _record(*((name, "u8") for name in ("counters", "data", "ns", "failed")), ("times", "u4"), ("sys", "u4"))
READ_LAUNCH = _record(("memory", "u8"), ("words", "u8"), ("sum", "u8"), ("grid", "u4"), ("reserved", "u4"))
FILL_LAUNCH = _record(("memory", "u8"), ("words", "u8"), ("seed", "u4"), ("grid", "u4"))

STALL_NS = 2_000_000_000


def record(dtype: np.dtype[np.void], **values: int) -> np.ndarray:
    """One record with these fields; the others are zero."""
    out = np.zeros(1, dtype)
    for name, value in values.items():
        out[name] = value
    return out
