"""What tasks touch against what their tilings declare (see `support/guarded_tasks.py`), and what the cases cover."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.guarded_tasks import (
    box_elements,
    check_op,
)
from support.opharness import (
    OPS,
    PLACE,
    PLACES,
    REACH,
    RUNNABLE,
    Guarded,
    any_seed,
    cases_of,
)
from support.partial_steps import room
from tilecompile.ir.graph import Tensor
from tilecompile.ir.node import View
from tilecompile.ir.tiling import Access
from tilecompile.ops.base import REGISTRY
from tilecompile.passes.tile import region_of
from tilecompile.targets.cpu.build import Isa


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("isa", RUNNABLE, ids=lambda isa: isa.name)
def test_tasks_touch_only_what_they_declare(op: str, isa: Isa) -> None:
    check_op(op, isa, any_seed(), (1, 2, 5))


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("isa", RUNNABLE, ids=lambda isa: isa.name)
def test_tasks_of_many_parts_touch_only_what_they_declare(op: str, isa: Isa) -> None:
    for _ in range(3):
        check_op(op, isa, any_seed(), (1, 2, 3, 4, 6, 7, 8, 16, 33))


# --- what the cases must cover ----------------------------------------------------------------------------------------

STORED = {"cache", "table"}
"""Arguments that may be f32 or bf16, as streamed weights may; all other numbers are f32."""

COPYING = {"push", "keep", "last_token"}
"""Ops that copy numbers of four bytes, whatever they mean."""


@pytest.mark.parametrize("op", OPS)
def test_cases_have_every_dtype_and_several_tokens(op: str) -> None:
    nodes = [case.node for case in cases_of(op, any_seed())]
    tokens = {room(node) for node in nodes}
    assert 1 in tokens
    assert max(tokens) > 1
    streamed = REGISTRY[op].weight_args
    assert {w.dtype for node in nodes for w in node.weights} == ({"f32", "bf16"} if streamed else set())
    arguments: list[str] = []
    if hasattr(torch.ops.tilecompile, op):  # the others are made by passes
        schema = getattr(torch.ops.tilecompile, op).default._schema
        arguments = [a.name for a in schema.arguments if str(a.type) == "Tensor" and a.name not in streamed]
    found = defaultdict(set)  # by number of operands too: folded parts come between an op's own inputs
    for node in nodes:
        for i, view in enumerate(node.operands):
            found[i, len(node.operands)].add(view.dtype)
    for (i, _), dtypes in found.items():
        if i < len(arguments) and arguments[i] in STORED:
            assert dtypes == {"f32", "bf16"}, f"{op} {arguments[i]}"
        else:
            assert dtypes in ({"f32"}, {"i32"}) or op in COPYING, f"{op} operand {i}"


@st.composite
def windows(draw: st.DrawFn) -> tuple[View, Tensor, Access]:
    """A window of a tensor that keeps its rows whole, as views of the graph do, and a box in it."""
    shape = (draw(st.integers(1, 4)), *(draw(st.integers(1, 5)) for _ in range(draw(st.integers(0, 2)))))
    whole = View.of("x", shape, "f32")
    sizes, offset = [shape[0]], 0
    for size, stride in zip(shape[1:], whole.strides[1:], strict=True):
        begin = draw(st.integers(0, size - 1))
        sizes.append(draw(st.integers(1, size - begin)))
        offset += begin * stride
    kept = [d for d, size in enumerate(sizes) if d == 0 or size > 1 or draw(st.booleans())]
    view = View("x", tuple(sizes[d] for d in kept), tuple(whole.strides[d] for d in kept), offset, "f32")
    box = []
    for size in view.shape:
        lo = draw(st.integers(0, size - 1))
        box.append((lo, draw(st.integers(lo + 1, size))))
    return view, Tensor("x", shape, "f32", "activation"), Access(0, tuple(box))


@given(windows())
def test_regions_enclose_the_elements_of_their_boxes(window: tuple[View, Tensor, Access]) -> None:
    view, tensor, access = window
    region = region_of(access, view, tensor, 1)
    rows, cols = np.divmod(box_elements(access, view, 0), tensor.cols)
    assert (region.row_begin[0], region.row_end[0]) == (rows.min(), rows.max() + 1)
    assert (region.col_begin[0], region.col_end[0]) == (cols.min(), cols.max() + 1)


def test_guarded_memory_has_no_neighbours_within_reach() -> None:
    """No absurd id leads a task to this process's own memory, which would be destroyed unseen."""
    blocks = [Guarded(size, at_end) for size in (1, 5000) for at_end in (False, True)]
    mapped = [line.split()[:2] for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [tuple(int(word, 16) for word in where.split("-")) for where, access in mapped if access[:3] != "---"]
    for block in blocks:
        near = [(a, b) for a, b in ranges if b > block.address - REACH and a < block.address + REACH]
        assert any(a <= block.address < b for a, b in near)
        assert all(abs(a - block.address) < PLACES * PLACE and b - a < PLACE for a, b in near)
