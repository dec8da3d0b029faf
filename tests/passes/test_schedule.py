"""Schedules: every task once, in an order that respects the grids, waits that suffice, tapes and buffers that fit."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from support.small import Step, glm5_graphs, glm5_program, plans, scheduled, trace_step
from support.table_tools import Parts, Stream, correct, orders, put_together, take_apart
from tilecompile import ops
from tilecompile.ir.program import PlacedTile, Program
from tilecompile.ir.tasks import EventTensors
from tilecompile.passes.dag import depths
from tilecompile.passes.fuse import fuse
from tilecompile.passes.schedule import ALIGN, assign
from tilecompile.runtime import format as fmt

WORKERS = (1, 2, 3, 5, 16)
Key = tuple[int, tuple[int, ...]]


def whole_plans(workers: int) -> list[EventTensors]:
    return plans(tuple(fuse(g) for g in glm5_graphs()), workers)


def base_of(plan_list: list[EventTensors], program: int) -> int:
    """Number of the program's first operator."""
    return sum(len(p.grids.grids) for p in plan_list[:program])


@pytest.mark.parametrize("workers", WORKERS)
def test_every_task_runs_once_in_the_order_of_the_grids(workers: int) -> None:
    parts, plan_list = take_apart(glm5_program(workers).tables), whole_plans(workers)
    for program, plan in enumerate(plan_list):
        base = base_of(plan_list, program)
        want: Counter[Key] = Counter()
        for g in plan.grids.grids:
            want.update((base + g.index, tuple(map(int, c))) for c in g.tiling.coords)
        assert Counter((i.op, i.tile) for i in parts.instructions(program)) == want
        streams = parts.of(program)
        assert [s.worker for s in streams] == list(range(workers))
        for s in streams:
            ops_ = [i.op for i in s.instructions]
            assert ops_ == sorted(ops_)


@pytest.mark.parametrize("workers", WORKERS)
def test_waits_that_are_left_out_follow_from_the_others(workers: int) -> None:
    """Every dependency that `events` derived is an order that the emitted waits and the workers' orders enforce."""
    parts, plan_list = take_apart(glm5_program(workers).tables), whole_plans(workers)
    emitted = derived = 0
    for program, plan in enumerate(plan_list):
        base = base_of(plan_list, program)
        found = {(i.op, i.tile): i for i in parts.instructions(program)}
        before = orders(parts.of(program))
        assert before is not None
        grids = plan.grids.grids

        def instruction(grid: int, task: int) -> int:
            key = base + grid, tuple(map(int, grids[grid].tiling.coords[task]))  # noqa: B023
            return id(found[key])  # noqa: B023

        for g in grids:
            for task in range(g.tasks):
                for tensor, element in plan.waits[g.index][task]:
                    t = plan.tensors[tensor]
                    derived += 1
                    for p in np.flatnonzero(t.notify == element):
                        assert instruction(t.producer, int(p)) in before[instruction(g.index, task)]
        emitted += sum(len(i.waits) for i in parts.instructions(program))
        assert correct(parts, program)
    assert emitted < derived
    if workers == 1:
        assert emitted == 0
        assert not any(i.notifies for i in parts.instructions())


@pytest.mark.parametrize("workers", [2, 5])
def test_no_wait_is_superfluous(workers: int) -> None:
    """Without any single wait, some dependency would be lost; waits of one task can imply each other now and then."""
    parts = take_apart(glm5_program(workers).tables)
    total = spare = 0
    for ins in parts.instructions(1):
        for k in range(len(ins.waits)):
            dropped = ins.waits.pop(k)
            total += 1
            spare += correct(parts, 1)
            ins.waits.insert(k, dropped)
    assert spare <= total // 20


def test_events_are_numbered_densely_and_notified_exactly() -> None:
    parts = take_apart(glm5_program(3).tables)
    notified = Counter(e for i in parts.instructions() for e, _ in i.notifies)
    awaited = {e for i in parts.instructions() for e, _ in i.waits}
    assert awaited == set(range(len(parts.events))) == set(notified)
    assert all(parts.events[e][2] == n for e, n in notified.items())
    for s in parts.streams:
        for i in s.instructions:
            assert {parts.events[e][0] for e, *_ in (*i.waits, *i.notifies)} <= {s.program}


def unconditional(stream: Stream) -> list[tuple[int, ...]]:
    """The runs of a stream's tape that don't depend on data: (offset, bytes, stride, slot, tile)."""
    return [r for i in stream.instructions for r in i.tape if r[3] == -1]


@pytest.mark.parametrize("workers", WORKERS)
def test_the_first_program_reads_its_tape_in_one_piece(workers: int) -> None:
    parts = take_apart(glm5_program(workers).tables)
    for s in parts.of(0):
        for a, b in pairwise(unconditional(s)):
            assert b[0] == -(-(a[0] + a[1]) // ALIGN) * ALIGN
    # What only the second program reads is in one piece too; what both read stays where the first has it.
    first = {r[4] for s in parts.of(0) for r in unconditional(s)}
    shared = 0
    for s in parts.of(1):
        own = [r for r in unconditional(s) if r[4] not in first]
        shared += len(unconditional(s)) - len(own)
        for a, b in pairwise(own):
            assert b[0] == -(-(a[0] + a[1]) // ALIGN) * ALIGN
    assert shared > 0


@pytest.mark.parametrize("workers", WORKERS)
def test_tapes_cover_every_row_of_every_weight_once(workers: int) -> None:
    program = glm5_program(workers)
    parts = take_apart(program.tables)
    tiles = {t.index: t for t in program.tiles}
    for index, graph in enumerate(fuse(g) for g in glm5_graphs()):
        rows: dict[tuple[str, int, int], list[tuple[int, int]]] = defaultdict(list)
        for ins in parts.instructions(index):
            for offset, size, stride, slot, number in ins.tape:
                placed = tiles[number]
                check_run(placed, offset, size, stride, slot)
                t = placed.tile
                for name in t.tensors:
                    for matrix in [slot] if t.gathered else range(t.begin, t.end):
                        rows[name, t.gathered, matrix].append((t.row_begin, t.row_end))  # type: ignore[index]
        for (name, _, _), spans in rows.items():
            shape = graph.tensors[name].shape
            assert sorted(spans) == sorted(set(spans))
            assert [b for _, b in sorted(spans)][:-1] == [a for a, _ in sorted(spans)][1:]
            assert (min(spans)[0], max(spans)[1]) == (0, shape[-2])
        streamed = {w.tensor for n in graph.nodes for w in n.weights}
        assert {name for name, _, _ in rows} == streamed


def check_run(placed: PlacedTile, offset: int, size: int, stride: int, slot: int) -> None:
    """A tape entry has the place of its tile, and the stride to the next expert's."""
    assert (offset, size) == (placed.offset, placed.bytes)
    assert (slot >= 0) == placed.tile.gathered == (stride > 0)
    assert stride in (0, placed.bytes)


@pytest.mark.parametrize("workers", WORKERS)
def test_no_buffers_or_tiles_overlap_in_memory(workers: int) -> None:
    program = glm5_program(workers)
    areas: dict[tuple[int, str], list[tuple[int, int]]] = defaultdict(list)
    for b in program.buffers:
        areas[b.device, b.arena].append((b.offset, b.offset + b.bytes))
    for t in program.tiles:
        areas[t.device, "weight"].append((t.offset, t.offset + t.bytes * t.copies))
    for (device, arena), spans in areas.items():
        spans.sort()
        assert all(begin % ALIGN == 0 for begin, _ in spans)
        assert all(a[1] <= b[0] for a, b in pairwise(spans))
        size = program.pool_bytes[device] if arena == "weight" else program.arena_bytes[device][arena]
        # Bodies load whole vectors, so an arena ends a vector after its last buffer.
        assert spans[-1][1] + (0 if arena == "weight" else ALIGN) <= size


def test_programs_share_weights_and_caches_but_not_activations() -> None:
    parts = take_apart(glm5_program(3).tables)
    program = glm5_program(3)
    used: list[set[int]] = []
    tiles: list[set[int]] = []
    for index in range(2):
        used.append({o[0] for i in parts.instructions(index) for o in i.operands})
        tiles.append({r[4] for i in parts.instructions(index) for r in i.tape})
    shared = {program.buffers[b].tensor for b in used[0] & used[1]}
    assert {t.role for t in shared} == {"input", "constant"}
    assert not any(program.buffers[b].arena == "activation" for b in used[0] & used[1])
    head = {t.index for t in program.tiles if t.tile.tensors == ("lm_head.weight",)}
    assert head
    assert head <= tiles[0] & tiles[1]


def test_a_cache_of_two_programs_is_one_buffer() -> None:
    """The same step as two programs: all but activations is one buffer, and no weight is stored in the pool twice."""
    one = scheduled((glm5_graphs()[0],), 3)
    first = glm5_graphs()[0]
    second = type(first)("again", first.tokens, first.tensors, first.nodes, first.outputs)
    two = scheduled((first, second), 3)
    assert two.pool_bytes == one.pool_bytes
    assert two.arena_bytes[0]["cache"] == one.arena_bytes[0]["cache"]
    assert two.arena_bytes[0]["activation"] == 2 * one.arena_bytes[0]["activation"]
    for program in range(2):
        assert correct(take_apart(two.tables), program)


class Tied(Step):
    """Streams its embedding table as lm_head, which is also an operand."""

    def forward(self, ids: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        logits = ops.linear(ops.embed(ids, self.table), self.table)
        return logits, ops.argmax(logits)


def test_a_weight_that_is_an_operand_too_is_stored_for_both() -> None:
    with torch.device("meta"):
        program = scheduled((trace_step(Tied(lambda m, x: x)),), 2)
    table = next(b for b in program.buffers if b.tensor.name == "table")
    assert table.arena == "weight"
    assert any(t.tile.tensors == ("table",) for t in program.tiles)


def test_hints_name_the_next_data_independent_run() -> None:
    tables = glm5_program(3).tables
    for s in tables["streams"]:
        following = fmt.NONE
        for i in range(int(s["end"]) - 1, int(s["begin"]) - 1, -1):
            ins = tables["instructions"][i]
            if ins["tape_count"] and tables["tape"][ins["tape_begin"]]["slot"] == -1:
                following = int(ins["tape_begin"])
            assert int(ins["prefetch"]) == following


@pytest.mark.parametrize("workers", WORKERS)
def test_work_is_shared_evenly_among_workers(workers: int) -> None:
    """By the tiles' costs no worker has much more than an equal part of what can run at once, nor of all."""
    for plan in whole_plans(workers):
        grids = plan.grids.grids
        depth = depths(plan.grids.graph)
        loads: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(workers))
        largest: dict[int, float] = defaultdict(float)
        for g, chosen in zip(grids, assign(grids, depth, workers), strict=True):
            assert chosen.min() >= 0
            assert chosen.max() < workers
            at = depth[g.node.name]
            np.add.at(loads[at], chosen, g.tiling.cost)
            largest[at] = max(largest[at], float(g.tiling.cost.max()))
        for at, load in loads.items():
            assert load.max() <= load.mean() + largest[at]
        whole = sum(loads.values())
        assert whole.max() <= whole.mean() + 2 * max(largest.values())


def test_taking_tables_apart_and_together_keeps_them() -> None:
    """The tool of these tests reassembles the tables that it takes apart."""
    tables = glm5_program(3).tables
    parts: Parts = take_apart(tables)
    again = put_together(parts)
    assert len(parts.instructions()) == len(tables["instructions"])
    for name in ("streams", "events", "buffers", "waits", "notifies", "regions", "tape", "weights", "tiles"):
        assert again[name].tolist() == tables[name].tolist()


def test_schedules_are_reproducible() -> None:
    a = glm5_program(3)
    b: Program = scheduled(glm5_graphs(), 3)
    assert all(a.tables[name].tobytes() == b.tables[name].tobytes() for name in fmt.TABLES)
