"""debug: compares kernel and interpreter operator by operator, to find the first one that differs.

Both run the same ids from fresh memory; what each operator wrote in the last step is compared. Errors of earlier steps
reach the last one through the caches only, so a shorter text narrows a difference down further.
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
"""Largest error, relative to the RMS of the interpreter's values, that rounding explains."""


@dataclass(frozen=True)
class Difference:
    """How far kernel and interpreter differ in the results of an operator in the last step.

    `error` is the largest difference over the RMS of the interpreter's values (of whole numbers: how many differ);
    None where the kernel's values are overwritten by the end of the step. `undefined` is the number of declared
    elements, of `elements`, that the interpreter left NaN.
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
    """The differences of all operators of the decode program but the sink, in program order."""
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
    """The first operator whose difference rounding doesn't explain; None if there is none."""
    return next((d for d in differences if d.wrong), None)


def _box(arrays: Arrays, names: Sequence[str], box: np.void) -> npt.NDArray[np.float64]:
    """A declared box of its buffer, taken as a matrix."""
    array = arrays[names[int(box["buffer"])]]
    matrix = array.reshape(array.shape[0], -1)
    return matrix[int(box["row_begin"]) : int(box["row_end"]), int(box["col_begin"]) : int(box["col_end"])]


def _error(pairs: Sequence[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]], partly: bool) -> float:
    """Largest difference over the RMS of the interpreter's values, or how many integers differ if that is more."""
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
