"""The checks of `test_regions.py` see every false declaration, and bodies that touch what is not theirs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from support.guarded_tasks import (
    Stage,
    Violation,
    bodies,
    check_tasks,
    check_tiling,
    undisturbed,
)
from support.opharness import (
    OPS,
    RUNNABLE,
    cases_of,
)
from tilecompile.ir.tiling import Bound, Tiling
from tilecompile.ops.base import REGISTRY
from tilecompile.ops.dtypes import torch_dtype
from tilecompile.ops.testing import Case


def rewritten(tiling: Tiling, writes: bool, index: int, dim: int, begin: Bound, end: Bound) -> Tiling:
    """A tiling rule's result with the bounds of one access moved."""
    accesses = list(tiling.writes if writes else tiling.reads)
    box = list(accesses[index].box)
    lo, hi = box[dim]
    box[dim] = (lo + begin, hi + end)
    accesses[index] = dataclasses.replace(accesses[index], box=tuple(box))
    changed = tuple(accesses)
    return dataclasses.replace(tiling, writes=changed) if writes else dataclasses.replace(tiling, reads=changed)


def false_declarations(tiling: Tiling) -> Iterator[tuple[bool, int, int, int, int]]:
    """Every access, dimension by dimension: one too small at either end; writes also shifted by one."""
    for writes, accesses in ((False, tiling.reads), (True, tiling.writes)):
        for index, access in enumerate(accesses):
            for dim in range(len(access.box)):
                yield writes, index, dim, 1, 0
                yield writes, index, dim, 0, -1
                if writes:
                    yield writes, index, dim, 1, 1


SEED = 1
"""What a false declaration breaks depends on the data, so these tests always draw the same."""


@pytest.mark.parametrize("op", OPS)
def test_every_false_declaration_of_a_tiling_rule_is_caught(op: str) -> None:
    """Running the tasks shows it in one of the op's cases, without the rules for tilings."""
    cases = cases_of(op, SEED)
    library, kinds = bodies(cases, RUNNABLE[0])
    made, caught = set(), set()
    for case in cases:
        tiling = REGISTRY[op].tile(case.node, 2)
        for false in false_declarations(tiling):
            key = (len(case.node.operands), *false)
            made.add(key)
            if key not in caught:
                try:
                    check_tasks(library, kinds[case.node.name], case, rewritten(tiling, *false))
                except Violation:
                    caught.add(key)
    assert caught == made
    assert made


@pytest.mark.parametrize("op", OPS)
def test_writes_that_leave_gaps_or_overlap_are_caught(op: str) -> None:
    case = cases_of(op, SEED)[0]
    tiling = REGISTRY[op].tile(case.node, 2)
    check_tiling(case, tiling)
    for dim, (begin, _) in enumerate(tiling.writes[0].box):
        lo = np.asarray(begin)
        if case.node.outputs:
            with pytest.raises(Violation, match="no task writes"):
                check_tiling(case, rewritten(tiling, True, 0, dim, 1, 0))
        if lo.max() > lo.min():
            with pytest.raises(Violation, match="two tasks write"):
                check_tiling(case, rewritten(tiling, True, 0, dim, -(lo > lo.min()).astype(np.int64), 0))
    with pytest.raises(Violation, match="out of the tensor"):
        check_tiling(case, rewritten(tiling, True, 0, 0, 0, 1))


def with_less(case: Case, name: str) -> Case:
    """The case with one tensor that ends before the last element that the node sees of it."""
    view = next(v for v in case.node.operands if v.tensor == name)
    tensor = case.tensors.get(name, torch.zeros(view.shape, dtype=torch_dtype(view.dtype)))
    last = view.offset + sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True))
    return dataclasses.replace(case, tensors={**case.tensors, name: tensor.flatten()[:last].clone()})


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("cache_append", "x"),
        ("embed", "table"),
        ("embed", "y"),
        ("expert_combine", "expert"),
        ("layer_norm", "b"),
        ("linear", "x"),
        ("linear", "y"),
        ("mla_attention", "selection"),
        ("rope", "angles"),
        ("topk_select", "selection"),
    ],
)
def test_a_body_that_goes_past_the_end_of_a_tensor_is_caught(op: str, name: str) -> None:
    case = with_less(cases_of(op, SEED)[0], name)
    library, kinds = bodies(cases_of(op, SEED), RUNNABLE[0])
    kind, tiling = kinds[case.node.name], REGISTRY[op].tile(case.node, 1)
    with pytest.raises(Violation, match=rf"touched byte \d+ of {name} \(\d+ bytes\)"):
        undisturbed(Stage.of(library, kind, case, tiling, at_end=True))
    if any(v.tensor == name for v in case.node.outputs):
        with pytest.raises(Violation, match=f"wrote before or behind {name}"):
            undisturbed(Stage.of(library, kind, case, tiling, at_end=False))


@pytest.mark.parametrize("op", [op for op in OPS if REGISTRY[op].weight_args])
def test_a_weight_tile_that_is_too_small_is_caught(op: str) -> None:
    cases = cases_of(op, SEED)
    library, kinds = bodies(cases, RUNNABLE[0])
    for case in cases:
        tiling = REGISTRY[op].tile(case.node, 1)
        short = tuple(
            tuple((dataclasses.replace(t, cols=t.cols, row_end=t.row_end - 16), slot) for t, slot in tiles)
            for tiles in tiling.weights
        )
        if all(t.row_end > t.row_begin for tiles in short for t, _ in tiles):
            with pytest.raises(Violation):
                check_tasks(library, kinds[case.node.name], case, dataclasses.replace(tiling, weights=short))


@pytest.mark.parametrize("op", OPS)
def test_scratch_memory_that_is_too_small_is_caught(op: str) -> None:
    """By a fifth, in one of the cases: some leave a little unused, such as a buffer's room for more."""
    cases = cases_of(op, SEED)
    library, kinds = bodies(cases, RUNNABLE[0])
    caught = []
    for case in cases:
        tiling = REGISTRY[op].tile(case.node, 1)
        if tiling.scratch:
            less = dataclasses.replace(tiling, scratch=tiling.scratch * 4 // 5)
            try:
                check_tasks(library, kinds[case.node.name], case, less)
                caught.append("")
            except Violation as e:
                caught.append(str(e))
    assert not caught or any("scratch memory" in text for text in caught)
