"""What tasks touch against what their tilings declare: the proof of a schedule rests on the declared regions.

Every task runs alone, in guarded memory, with a pattern in all that it doesn't declare. Its results must be those of an
undisturbed run, nothing outside its declared writes may change, and nothing outside its tensors, its weight tiles and
its scratch memory may be touched.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Iterable, Iterator
from math import prod

import numpy as np
import numpy.typing as npt
import torch

from support.opharness import (
    Guarded,
    Raw,
    build_bodies,
    call,
    cases_of,
    filling,
    pack_pool,
    raw,
)
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
