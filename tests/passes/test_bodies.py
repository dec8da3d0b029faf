"""What tasks touch, stated by tile coordinates: for all ops, and refused where a body couldn't know it."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np
import pytest

from support.opharness import OPS, any_seed, cases_of
from tilecompile.ir.tasks import TaskGrid
from tilecompile.ir.tiling import Access, Tiling
from tilecompile.ops.base import REGISTRY, TraitError
from tilecompile.passes.bodies import Bodies
from tilecompile.passes.table_builder import TableBuilder


def stated(grid: TaskGrid, devices: int = 1) -> dict[str, np.ndarray]:
    """The tables that state a grid's operator."""
    tables = TableBuilder()
    arenas = ["activation"] * len(grid.node.operands)
    Bodies(tables, devices).operator(grid, 0, 1, 0, arenas, defaultdict(int))
    return tables.arrays()


@pytest.mark.parametrize("op", OPS)
def test_every_op_bounds_what_it_touches_by_its_coordinates(op: str) -> None:
    for case in cases_of(op, any_seed()):
        for parts in (1, 2, 5):
            tiling = REGISTRY[op].tile(case.node, parts)
            tables = stated(TaskGrid(0, case.node, 0, tiling, (), ()))
            accesses = [*tiling.reads, *tiling.writes]
            assert tables["accesses"]["operand"].tolist() == [a.operand for a in accesses]
            for access, row in zip(accesses, tables["accesses"], strict=True):
                bounds = [b for ends in access.box for b in ends]
                for k, bound in enumerate(bounds):
                    at, by, add = (int(row[field][k]) for field in ("at", "by", "add"))
                    coordinate = tiling.coords[:, at] if at < 4 else 0
                    assert (np.asarray(bound) == coordinate * by + add).all()
            assert tables["operators"]["runs"].tolist() == [len(tiling.weights[0])]


def linear_grid(parts: int) -> TaskGrid:
    """Some tasks of a matrix."""
    case = next(c for c in cases_of("linear", 3) if c.node.weights[0].shape[0] > 32)
    return TaskGrid(0, case.node, 0, REGISTRY["linear"].tile(case.node, parts), (), ())


def with_tiling(grid: TaskGrid, **changes: object) -> TaskGrid:
    """The grid with another tiling."""
    tiling: Tiling = dataclasses.replace(grid.tiling, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(grid, tiling=tiling)


def test_bounds_that_a_body_can_not_know_are_refused() -> None:
    grid = linear_grid(3)
    tasks = grid.tasks
    assert tasks > 2
    odd = np.array([0, *range(5, 4 + tasks)])
    reads = (Access(0, ((0, 1), (odd, odd + 1))),)
    with pytest.raises(TraitError, match=r"^tile op linear bounds operand 0 by 0, 5, 6.*, want a constant"):
        stated(with_tiling(grid, reads=reads, coords=np.zeros((tasks, 4), np.int32)))
    coords = grid.tiling.coords.copy()
    coords[:, 3] = odd
    with pytest.raises(TraitError, match="has a tile coordinate 3 that bounds nothing"):
        stated(with_tiling(grid, coords=coords))
    weights = (*grid.tiling.weights[:-1], ())
    with pytest.raises(TraitError, match=r"has tasks of \[0, 1\] weight runs"):
        stated(with_tiling(grid, weights=weights))
    weights = tuple((run, run) for (run,) in grid.tiling.weights)
    with pytest.raises(TraitError, match="that aren't of one tile, slot after slot"):
        stated(with_tiling(grid, weights=weights))
    with pytest.raises(TraitError, match="has an operand of 5 dimensions"):
        stated(with_tiling(grid, reads=(Access(0, ((0, 1),) * 5),)))
