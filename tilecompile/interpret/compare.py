"""debug: kernel and interpreter side by side, operator by operator, to find the first one that differs.

Both feed the same ids from fresh memory; what each operator of the last step wrote is compared. Errors of earlier steps
reach the last one through the caches only, so shorter texts narrow a difference down further.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tilecompile.errors import EngineError
from tilecompile.interpret.interpreter import Interpreter, Order
from tilecompile.ops.base import REGISTRY
from tilecompile.runtime.load import load
from tilecompile.runtime.replay.buffers import Arrays, check_kept, labels, writes

LIMIT = 1e-4
"""Largest error over the RMS of the wanted values that rounding explains."""


@dataclass(frozen=True)
class Difference:
    """What the kernel and the interpreter made of an operator in the last step.

    `error` is the largest difference over the RMS of the interpreter's values (of whole numbers: how many differ);
    None where the kernel's values are gone when the step is over. `undefined` counts declared elements that the
    interpreter left not-a-number, of `elements`.
    """

    operator: str
    op: str
    error: float | None
    undefined: int
    elements: int

    @property
    def wrong(self) -> bool:
        """Whether rounding doesn't explain the difference."""
        return self.error is not None and not self.error <= LIMIT


def compare(
    engine: str | Path, ids: Iterable[int], threads: int | None = None, order: Order = "program"
) -> list[Difference]:
    """Every operator of the decode program but the sink, in program order."""
    interpreter = Interpreter(engine, order)
    ids = list(ids)
    want = interpreter.buffers_after(ids)
    with load(engine, threads) as kernel:
        got = kernel.buffers_after(ids)
    manifest, tables = interpreter.manifest, interpreter.tables
    names = labels(manifest, tables)
    written = writes(manifest, tables)
    differences = []
    for name, boxes in written.items():
        op = REGISTRY[interpreter.op(name)]
        if op.is_sink:
            continue
        pairs = [(_box(got, names, box), _box(want, names, box)) for box in boxes]
        undefined = sum(int(np.isnan(w).sum()) for _, w in pairs if w.dtype.kind == "f")
        elements = sum(w.size for _, w in pairs)
        error: float | None = _error(pairs, op.partly_written)
        try:
            check_kept(manifest, tables, written, name)
        except EngineError:
            error = None
        differences.append(Difference(name, op.name, error, undefined, elements))
    return differences


def first_wrong(differences: Sequence[Difference]) -> Difference | None:
    """The operator to look at: the first one whose difference rounding doesn't explain."""
    return next((d for d in differences if d.wrong), None)


def _box(arrays: Arrays, names: Sequence[str], box: np.void) -> npt.NDArray[np.float64]:
    """A declared box of the matrix that its buffer is."""
    array = arrays[names[int(box["buffer"])]]
    matrix = array.reshape(array.shape[0], -1)
    return matrix[int(box["row_begin"]) : int(box["row_end"]), int(box["col_begin"]) : int(box["col_end"])]


def _error(pairs: Sequence[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]], partly: bool) -> float:
    """Largest difference over the RMS of the wanted values, or the number of whole numbers that differ."""
    whole, largest, squares, count = 0, 0.0, 0.0, 0
    for got, want in pairs:
        if want.dtype.kind != "f":
            whole += int((got != want).sum())
            continue
        defined = ~np.isnan(want) if partly else np.ones(want.shape, bool)
        a, b = got[defined].astype(np.float64), want[defined].astype(np.float64)
        off = np.abs(a - b)
        largest = max(largest, float(np.where(np.isnan(off), np.inf, off).max(initial=0)))
        squares, count = squares + float((b * b).sum()), count + b.size
    if largest == 0:
        return float(whole)
    rms = (squares / count) ** 0.5
    return max(float(whole), largest / rms if rms > 0 else float("inf"))
