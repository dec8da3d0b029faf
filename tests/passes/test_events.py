"""Derived events against brute force: which task waits for which follows from the elements that both touch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.small import glm5_graphs, plans
from tilecompile.ir.graph import OpGraph, Tensor
from tilecompile.ir.node import OpNode
from tilecompile.ir.placement import Placement
from tilecompile.ir.tasks import EventTensors, Region, TaskGrid, TaskGrids
from tilecompile.ir.tiling import Tiling
from tilecompile.passes.events import classes, events
from tilecompile.passes.fuse import fuse

Task = tuple[int, int]
ROWS, COLS = 3, 6


def grid_of(index: int, op: str, tasks: int, reads: list[Region], writes: list[Region]) -> TaskGrid:
    """A grid with nothing but regions."""
    tiling = Tiling(np.zeros((tasks, 4), np.int32), (), (), ((),) * tasks, np.ones(tasks))
    return TaskGrid(index, OpNode(f"g{index}", op, (), (), ()), 0, tiling, tuple(reads), tuple(writes))


@st.composite
def regions(draw: st.DrawFn, tasks: int) -> Region:
    """One box a task in one of three small tensors."""
    bounds = []
    for size in (ROWS, COLS):
        begin = draw(st.lists(st.integers(0, size - 1), min_size=tasks, max_size=tasks))
        end = [draw(st.integers(b + 1, size)) for b in begin]
        bounds += [np.array(begin, np.int64), np.array(end, np.int64)]
    return Region(draw(st.sampled_from("xyz")), *bounds)


@st.composite
def programs(draw: st.DrawFn) -> TaskGrids:
    """Grids of random boxes, ended by a sink that touches nothing or something."""
    grids = []
    count = draw(st.integers(1, 6))
    for index in range(count):
        tasks = draw(st.integers(1, 4))
        reads, writes = (draw(st.lists(regions(tasks), max_size=2)) for _ in range(2))
        grids.append(grid_of(index, "map", tasks, reads, writes))
    reads, writes = (draw(st.lists(regions(1), max_size=1)) for _ in range(2))
    grids.append(grid_of(count, "commit", 1, reads, writes))
    tensors = {n: Tensor(n, (ROWS, COLS), "f32", "activation") for n in "xyz"}
    return TaskGrids(OpGraph("test", 1, tensors), Placement("single", 1, {}), grids)


def tasks_of(grids: TaskGrids) -> Iterator[Task]:
    for grid in grids.grids:
        for task in range(grid.tasks):
            yield grid.index, task


def elements(region: Region, task: int) -> set[tuple[str, int, int]]:
    """Elements of a task's box."""
    rows = range(int(region.row_begin[task]), int(region.row_end[task]))
    cols = range(int(region.col_begin[task]), int(region.col_end[task]))
    return {(region.tensor, r, c) for r in rows for c in cols}


def touched(grids: TaskGrids) -> tuple[dict[Task, set[tuple[str, int, int]]], dict[Task, set[tuple[str, int, int]]]]:
    """Elements that each task reads, and that it writes."""
    sets: list[dict[Task, set[tuple[str, int, int]]]] = []
    for name in ("reads", "writes"):
        sets.append({})
        for g, t in tasks_of(grids):
            found = [elements(region, t) for region in getattr(grids.grids[g], name)]
            sets[-1][g, t] = set().union(*found)
    return sets[0], sets[1]


def producers(plan: EventTensors, grid: int, task: int) -> set[Task]:
    """The tasks that a task waits for."""
    found = set()
    for tensor, element in plan.waits[grid][task]:
        t = plan.tensors[tensor]
        found |= {(t.producer, int(p)) for p in np.flatnonzero(t.notify == element)}
    return found


def check_counts(plan: EventTensors) -> None:
    """Each task notifies one element of a tensor at most; counts and elements are those of the notify map."""
    for index, t in enumerate(plan.tensors):
        assert t.index == index
        assert t.notify.shape == (plan.grids.grids[t.producer].tasks,)
        assert ((t.notify >= -1) & (t.notify < len(t.wait_counts))).all()
        counts = np.bincount(t.notify[t.notify >= 0], minlength=len(t.wait_counts))
        assert (counts == t.wait_counts).all()
        assert (t.wait_counts > 0).all()
    keys = [(t.producer, t.notify.tobytes()) for t in plan.tensors]
    assert len(set(keys)) == len(keys)
    awaited = {pair for grid in plan.waits for task in grid for pair in task}
    assert awaited == {(t.index, e) for t in plan.tensors for e in range(len(t.wait_counts))}


def check_sink(plan: EventTensors) -> None:
    """Every task comes before the sink."""
    grids = plan.grids.grids
    seen: set[Task] = set()
    todo = [(grids[-1].index, 0)]
    while todo:
        task = todo.pop()
        if task not in seen:
            seen.add(task)
            todo += producers(plan, *task)
    assert seen == set(tasks_of(plan.grids))


@settings(max_examples=150, deadline=None)
@given(programs())
def test_waits_are_the_overlaps_of_elements(grids: TaskGrids) -> None:
    plan = events(grids)
    check_counts(plan)
    check_sink(plan)
    reads, writes = touched(grids)
    sink = grids.grids[-1].index
    for g, t in tasks_of(grids):
        earlier = [task for task in tasks_of(grids) if task[0] < g]
        after_write = {p for p in earlier if writes[p] & (reads[g, t] | writes[g, t])}
        after_read = {p for p in earlier if reads[p] & writes[g, t]}
        waits = plan.waits[g][t]
        assert len(set(waits)) == len(waits)
        if g != sink:
            assert producers(plan, g, t) == after_write | after_read
        else:
            others = {p for c, task in tasks_of(grids) if c != sink for p in producers(plan, c, task)}
            assert producers(plan, g, t) == after_write | after_read | (set(earlier) - others)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_classes_group_makers_that_the_same_consumers_wait_for(
    consumers: int, makers: int, data: st.DataObject
) -> None:
    bits = data.draw(st.lists(st.booleans(), min_size=consumers * makers, max_size=consumers * makers))
    matrix = np.array(bits).reshape(consumers, makers)
    signatures, notify = classes(matrix)
    for p in range(makers):
        assert (notify[p] == -1) == (not matrix[:, p].any())
        if notify[p] >= 0:
            assert (signatures[notify[p]] == matrix[:, p]).all()
    assert len({s.tobytes() for s in signatures}) == len(signatures)
    firsts = [int(np.flatnonzero(notify == e)[0]) for e in range(len(signatures))]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize("parts", [1, 2, 5, 16])
@pytest.mark.parametrize("tokens", [1, 3])
def test_events_of_glm5_are_the_overlaps_of_regions(parts: int, tokens: int) -> None:
    for plan in plans(tuple(fuse(g) for g in glm5_graphs(tokens)), parts):
        check_counts(plan)
        check_sink(plan)
        reads, writes = boxes(plan.grids)
        for grid in plan.grids.grids[:-1]:
            for task in range(grid.tasks):
                want = set()
                for mine, theirs in ((reads, writes), (writes, writes), (writes, reads)):
                    want |= {
                        other
                        for box in mine.get((grid.index, task), [])
                        for other, boxes_ in theirs.items()
                        if other[0] < grid.index and any(meet(box, b) for b in boxes_)
                    }
                assert producers(plan, grid.index, task) == want


Box = tuple[str, int, int, int, int]


def boxes(grids: TaskGrids) -> tuple[dict[Task, list[Box]], dict[Task, list[Box]]]:
    """Boxes that each task reads, and that it writes."""
    found: list[dict[Task, list[Box]]] = [{}, {}]
    for g, t in tasks_of(grids):
        for kind, rs in zip(found, (grids.grids[g].reads, grids.grids[g].writes), strict=True):
            for r in rs:
                bounds = (int(b[t]) for b in (r.row_begin, r.row_end, r.col_begin, r.col_end))
                kind.setdefault((g, t), []).append((r.tensor, *bounds))  # type: ignore[arg-type]
    return found[0], found[1]


def meet(a: Box, b: Box) -> bool:
    """Whether two boxes share an element."""
    return a[0] == b[0] and a[1] < b[2] and b[1] < a[2] and a[3] < b[4] and b[3] < a[4]
