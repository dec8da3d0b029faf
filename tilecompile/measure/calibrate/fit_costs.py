"""Costs of ops from recorded tasks: non-negative least squares on what the tasks did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tilecompile.cost.simulate.loop import Numbers
from tilecompile.cost.simulate.work import Work
from tilecompile.schedules.machine import OpCost

ROUNDS = 10
FIXED = ("task_ns", "run_ns", "element_ns")
"""Costs that come on top of the time that a task's bytes take; the others overlap with it."""


@dataclass(frozen=True)
class Sample:
    """Recorded tasks of a step on one thread: their ops, what they did, how long each took and its bytes alone.

    `times` and `memory` are float64 [tasks] in nanoseconds.
    """

    ops: Sequence[str]
    work: Work
    times: Numbers
    memory: Numbers


def fit(samples: Sequence[Sample]) -> dict[str, OpCost]:
    """The costs of each op that the samples have.

    A task takes its fixed cost, and then either what its body computes or the time of its bytes, whichever is longer.
    Which of the two it is follows from the costs, so the fit is repeated until that doesn't change. Errors weigh by the
    root of the time, so that short tasks count too. After Lawson and Hanson, Solving Least Squares Problems (1974), but
    that unknowns which turn negative stay zero.
    """
    names = sorted({op for s in samples for op in s.ops})
    types = sorted({name for s in samples for name in s.work.weights})
    tables = {op: [_table(s, np.array([o == op for o in s.ops]), types) for s in samples] for op in names}
    return {op: _fit_op(np.concatenate(parts), types) for op, parts in tables.items()}


def _table(sample: Sample, mine: npt.NDArray[np.bool_], types: list[str]) -> Numbers:
    """A row for each task: 1, runs, elements, products, bytes of each type, the time of its bytes, its time."""
    work = sample.work
    weights = [work.weights.get(name, np.zeros(len(mine))) for name in types]
    columns = (np.ones(len(mine)), work.runs, work.elements, work.products, *weights, sample.memory, sample.times)
    found: Numbers = np.stack(columns, 1)[mine]
    return found


def _fit_op(table: Numbers, types: list[str]) -> OpCost:
    known, memory, times = table[:, :-2], table[:, -2], table[:, -1]
    varies = np.ptp(known, axis=0) > 0
    varies[0] = True
    bound = memory > times / 2
    costs = np.zeros(known.shape[1])
    for _ in range(ROUNDS):
        used = known * varies
        used[:, len(FIXED) :] *= ~bound[:, None]
        costs = nonnegative(used, times - memory * bound, np.sqrt(np.maximum(times, 1)))
        again = memory > known[:, len(FIXED) :] @ costs[len(FIXED) :]
        if (again == bound).all():
            break
        bound = again
    fixed = dict(zip(FIXED, map(float, costs), strict=False))
    sizes = {name: float(c) for name, c in zip(types, costs[len(FIXED) + 1 :], strict=True) if c > 0}
    return OpCost(**fixed, product_ns=float(costs[len(FIXED)]), byte_ns=sizes)


def nonnegative(known: Numbers, values: Numbers, scale: Numbers) -> Numbers:
    """Unknowns of at least 0 whose products with the columns come near the values, each error divided by `scale`."""
    size = np.maximum(np.abs(known).max(axis=0), 1e-300)
    free = np.abs(known).max(axis=0) > 0
    found = np.zeros(known.shape[1])
    while free.any():
        columns = np.flatnonzero(free)
        solved = np.linalg.lstsq(known[:, columns] / size[columns] / scale[:, None], values / scale, rcond=None)[0]
        if (solved >= 0).all():
            found[columns] = solved / size[columns]
            break
        free[columns[solved.argmin()]] = False
    return found
