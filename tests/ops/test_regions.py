"""What tasks touch against what their tilings declare: the proof of a schedule rests on the declared regions.

Every task runs alone, in guarded memory, with a pattern in all that it doesn't declare. Its results must be those of an
undisturbed run, nothing outside its declared writes may change, and nothing outside its tensors, its weight tiles and
its scratch memory may be touched.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.opharness import (
    OPS,
    PLACE,
    PLACES,
    REACH,
    RUNNABLE,
    Guarded,
    Raw,
    any_seed,
    build_bodies,
    call,
    cases_of,
    filling,
    pack_pool,
    raw,
)
from support.partial_steps import room
from tilecompile.ir.graph import Tensor
from tilecompile.ir.node import OpNode, View
from tilecompile.ir.tiling import Access, Bound, Tiling
from tilecompile.ops.base import REGISTRY
from tilecompile.ops.dtypes import torch_dtype
from tilecompile.ops.testing import Case
from tilecompile.passes.schedule import ALIGN
from tilecompile.passes.tile import region_of
from tilecompile.runtime import format as fmt
from tilecompile.targets.cpu.build import Isa
from tilecompile.targets.kind import Kind

Mask = npt.NDArray[np.bool_]
Elements = npt.NDArray[np.int64]

UNWRITTEN = 0x7FD5
"""What outputs hold before an undisturbed run: as f32 and bf16 not a number, as i32 no index."""

DISTURBANCES = ((0x7FE5, True), (0x7E5A, False), (0xFE5A, True))
"""Pattern (NaN, huge, negative and huge; absurd ids all of them), and whether tensors end at a guard page."""


class Violation(AssertionError):
    """A task that touches what it doesn't declare, or a tiling whose regions don't fit together."""


# --- declared elements ------------------------------------------------------------------------------------------------


def at(bound: Bound, task: int) -> int:
    """A bound of one task."""
    return int(bound if isinstance(bound, int | np.integer) else bound[task])


def box_elements(access: Access, view: View, task: int) -> Elements:
    """The elements of the tensor, counted over all of it, in the box of an access."""
    flat = np.array([view.offset], np.int64)
    for (lo, hi), stride in zip(access.box, view.strides, strict=True):
        flat = np.add.outer(flat, np.arange(at(lo, task), at(hi, task)) * stride).reshape(-1)
    return flat


@dataclasses.dataclass(frozen=True)
class Layout:
    """The tensors of a case's operands: how many elements each has, and how many columns as a matrix."""

    size: dict[str, int]
    cols: dict[str, int]

    @staticmethod
    def of(case: Case) -> Layout:
        """Inputs have the shape of the case's tensors, outputs that of their views."""
        size, cols = {}, {}
        for view in case.node.operands:
            tensor = case.tensors.get(view.tensor)
            shape = tuple(tensor.shape) if tensor is not None else view.shape
            size[view.tensor] = prod(shape)
            cols[view.tensor] = view.strides[0] if len(shape) == 1 < len(view.shape) else prod(shape[1:])
        return Layout(size, cols)

    def masks(self, node: OpNode, accesses: Iterable[Access], task: int) -> dict[str, Mask]:
        """For each tensor, which elements one task declares."""
        masks = {name: np.zeros(size, np.bool_) for name, size in self.size.items()}
        for access in accesses:
            view = node.operands[access.operand]
            elements = box_elements(access, view, task)
            masks[view.tensor][elements[(elements >= 0) & (elements < self.size[view.tensor])]] = True
        return masks

    def region_masks(self, node: OpNode, access: Access, tasks: int) -> Iterator[Mask]:
        """For each task, which elements of the tensor are in the region that the compiler makes of an access."""
        view = node.operands[access.operand]
        size, cols = self.size[view.tensor], self.cols[view.tensor]
        tensor = Tensor(view.tensor, (-(-size // cols), cols), view.dtype, "activation")
        region = region_of(access, view, tensor, tasks)
        for task in range(tasks):
            mask = np.zeros((-(-size // cols), cols), np.bool_)
            mask[region.row_begin[task] : region.row_end[task], region.col_begin[task] : region.col_end[task]] = True
            yield mask.reshape(-1)[:size]


def check_tiling(case: Case, tiling: Tiling) -> None:
    """Regions hold what the boxes declare; tasks write apart from each other, and outputs are written completely."""
    node, layout, tasks = case.node, Layout.of(case), len(tiling.coords)
    what = f"{node.op} {node.name}"
    for access in (*tiling.reads, *tiling.writes):
        name = node.operands[access.operand].tensor
        for task, region in enumerate(layout.region_masks(node, access, tasks)):
            elements = box_elements(access, node.operands[access.operand], task)
            if len(elements) and not 0 <= elements.min() <= elements.max() < layout.size[name]:
                raise Violation(f"{what}: the box of task {task} in {name} reaches out of the tensor")
            if not region[elements].all():
                raise Violation(f"{what}: the region of task {task} in {name} misses elements of its box")
    count = {name: np.zeros(size, np.int64) for name, size in layout.size.items()}
    count_region = {name: np.zeros(size, np.int64) for name, size in layout.size.items()}
    for task in range(tasks):
        for name, mask in layout.masks(node, tiling.writes, task).items():
            count[name] += mask
    for access in tiling.writes:
        for mask in layout.region_masks(node, access, tasks):
            count_region[node.operands[access.operand].tensor] += mask
    for name in layout.size:
        if count[name].max() > 1 or count_region[name].max() > 1:
            raise Violation(f"{what}: two tasks write the same element of {name}")
    for view in node.outputs:
        if count[view.tensor].min() < 1:
            raise Violation(f"{what}: no task writes element {int(count[view.tensor].argmin())} of {view.tensor}")


# --- running in guarded memory ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stage:
    """One tiling of a case, and the guarded memory that its tasks run in."""

    library: ctypes.CDLL
    kind: Kind
    case: Case
    tiling: Tiling
    blocks: dict[str, Guarded]
    scratch: Guarded
    at_end: bool

    @staticmethod
    def of(library: ctypes.CDLL, kind: Kind, case: Case, tiling: Tiling, at_end: bool) -> Stage:
        """Memory for every operand, each ending (or beginning) at an inaccessible page, and exact scratch memory."""
        blocks = {}
        for view in case.node.operands:
            size = Layout.of(case).size[view.tensor] * fmt.DTYPE_BYTES[view.dtype]
            blocks[view.tensor] = Guarded(size, at_end)
        scratch = Guarded(-(-tiling.scratch // ALIGN) * ALIGN, at_end)
        return Stage(library, kind, case, tiling, blocks, scratch, at_end)

    def run(self, task: int, contents: dict[str, Raw], pattern: int, gaps: bool) -> dict[str, Raw]:
        """Runs one task on tensors with the given bits; returns their bits afterwards.

        All memory around them holds the pattern; with `gaps` so do the tiles of experts that the task has no slot for.
        """
        node = self.case.node
        pool, tape = pack_pool(self.case, self.tiling.weights[task], pattern if gaps else None)
        weights = Guarded(len(pool), self.at_end)
        for name, block in (*self.blocks.items(), ("its scratch memory", self.scratch), ("its weights", weights)):
            block.fill(pattern)
            if name in contents:
                block.bytes.view(contents[name].dtype)[:] = contents[name]
        weights.bytes[:] = pool
        addresses = {name: block.address for name, block in self.blocks.items()}
        coords = self.tiling.coords[task]
        fault, forgot = call(
            self.library, self.kind, node, coords, addresses, tape, weights.address, self.scratch.address
        )
        where = {**self.blocks, "its weights": weights, "its scratch memory": self.scratch}
        if fault is not None:
            found = [
                f"byte {fault - b.address} of {n} ({len(b.bytes)} bytes)" for n, b in where.items() if b.holds(fault)
            ]
            raise Violation(f"{self.name(task)} touched {' or '.join(found) or hex(fault)}")
        for name, block in where.items():
            if not block.filler_kept(pattern):
                raise Violation(f"{self.name(task)} wrote before or behind {name}")
        if not np.array_equal(weights.bytes, pool):
            raise Violation(f"{self.name(task)} wrote to its weights")
        changed = self.scratch.bytes != filling(len(self.scratch.bytes), pattern)
        if changed[self.tiling.scratch :].any():
            raise Violation(f"{self.name(task)} wrote behind its scratch memory")
        if changed.any() and forgot:
            raise Violation(f"{self.name(task)} used its scratch memory and left the note on what it holds")
        return {n: self.blocks[n].bytes.view(c.dtype).copy() for n, c in contents.items()}

    def name(self, task: int) -> str:
        """The task as messages name it."""
        node = self.case.node
        tasks = len(self.tiling.coords)
        return f"{node.op} {node.name} task {task} of {tasks} {self.tiling.coords[task].tolist()}"


def initial(case: Case) -> dict[str, Raw]:
    """The bits of all operands' tensors before an undisturbed run."""
    contents: dict[str, Raw] = {}
    for view in case.node.operands:
        if view.tensor in case.tensors:
            contents[view.tensor] = raw(case.tensors[view.tensor])
        else:
            empty = torch.empty(view.shape, dtype=torch_dtype(view.dtype))
            contents[view.tensor] = filling(empty.nbytes, UNWRITTEN).view(raw(empty).dtype)
    return contents


def undisturbed(stage: Stage) -> dict[str, Raw]:
    """The bits of all tensors after all tasks."""
    contents = initial(stage.case)
    for task in range(len(stage.tiling.coords)):
        contents = stage.run(task, contents, UNWRITTEN, gaps=False)
    return contents


def check_task(stage: Stage, task: int, pattern: int, want: dict[str, Raw]) -> None:
    """Runs one task alone, with the pattern in all that it doesn't declare as read."""
    node, layout, before = stage.case.node, Layout.of(stage.case), initial(stage.case)
    reads = layout.masks(node, stage.tiling.reads, task)
    writes = layout.masks(node, stage.tiling.writes, task)
    contents = {}
    for name, bits in before.items():
        disturbed = filling(bits.nbytes, pattern).view(bits.dtype)
        contents[name] = np.where(reads[name], bits, disturbed)
    after = stage.run(task, contents, pattern, gaps=True)
    for name, bits in after.items():
        outside = np.flatnonzero((bits != contents[name]) & ~writes[name])
        if len(outside):
            place = divmod(int(outside[0]), layout.cols[name])
            raise Violation(f"{stage.name(task)} wrote {len(outside)} elements outside its box, first {name}{place}")
        left = (want[name] == before[name]) & (bits == contents[name])
        wrong = np.flatnonzero(writes[name] & (bits != want[name]) & ~left)
        if len(wrong):
            place = divmod(int(wrong[0]), layout.cols[name])
            raise Violation(f"{stage.name(task)} needs more than it declares: {len(wrong)} wrong, first {name}{place}")


Bodies = tuple[ctypes.CDLL, dict[str, Kind]]


def bodies(cases: list[Case], isa: Isa) -> Bodies:
    """The library of the cases' bodies."""
    return build_bodies([c.node for c in cases], isa)


def check(built: Bodies, case: Case, tiling: Tiling) -> dict[str, Raw]:
    """All checks of one tiling; returns the undisturbed results."""
    library, kinds = built
    check_tiling(case, tiling)
    return check_tasks(library, kinds[case.node.name], case, tiling)


def check_tasks(library: ctypes.CDLL, kind: Kind, case: Case, tiling: Tiling) -> dict[str, Raw]:
    """Every task alone, in every disturbance; returns the undisturbed results."""
    stages = {at_end: Stage.of(library, kind, case, tiling, at_end) for at_end in (True, False)}
    want = undisturbed(stages[True])
    for task in range(len(tiling.coords)):
        for pattern, at_end in DISTURBANCES:
            check_task(stages[at_end], task, pattern, want)
    return want


def check_op(op: str, isa: Isa, seed: int, parts: Iterable[int]) -> None:
    """All cases of an op; the results don't depend on how the work is divided."""
    cases = cases_of(op, seed)
    built = bodies(cases, isa)
    for case in cases:
        results = []
        for n in parts:
            try:
                results.append(check(built, case, REGISTRY[op].tile(case.node, n)))
            except Violation as e:
                raise Violation(f"{e} (parts={n} seed={seed})") from None
        for result in results[1:]:
            for name, bits in result.items():
                assert np.array_equal(bits, results[0][name]), f"{op} {case.node.name} seed={seed}: {name}"


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


# --- false declarations -----------------------------------------------------------------------------------------------


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
