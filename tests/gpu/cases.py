"""What part `ops` runs: cases of every op, whose shapes do not depend on the seed, so that kernels fit any numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from support.glm5_cases import CASES
from support.gpu_bodies import GPU_OPS
from support.opharness import cases_of
from support.stream_cases import OPS as STREAM_OPS
from support.stream_cases import every_case, glm5
from tilecompile.ops.base import REGISTRY
from tilecompile.ops.testing import Case
from tilecompile.targets.cuda.emit import GpuKind, task_kinds

OWN = 4
"""Cases of an op's own that are run, of ops in TileLang: lowering each takes seconds."""


@dataclass(frozen=True)
class Trial:
    """A case, in how many parts its operator is cut, and how many of those tasks are run (None: all)."""

    case: Case
    parts: int
    most: int | None = None

    @property
    def streams(self) -> bool:
        """Whether the op streams weights."""
        return self.case.node.op in STREAM_OPS


def trials(op: str, seed: int, full_size: bool = True) -> list[Trial]:
    """The trials of an op, with different names; numbers are drawn from the seed where the cases let it choose.

    Without `full_size` those at GLM-5's shapes are left out.
    """
    return [
        dataclasses.replace(t, case=dataclasses.replace(t.case, node=dataclasses.replace(t.case.node, name=name)))
        for i, t in enumerate(_trials(op, seed, full_size))
        for name in [f"{t.case.node.name}_{i}"]
    ]


def _trials(op: str, seed: int, full_size: bool) -> Iterator[Trial]:
    if op in STREAM_OPS:
        for case, parts in every_case(op):
            yield Trial(case, parts)
        for case, workers in glm5([op], 1) if full_size else ():
            yield Trial(case, workers, 4)
        return
    for i, case in enumerate(cases_of(op, seed)[:OWN]):
        yield Trial(case, (1, 2, 5)[i % 3])
    for case in CASES[op](torch.Generator().manual_seed(seed), 1) if full_size else ():
        yield Trial(case, 4)


def kinds_of(found: list[Trial]) -> tuple[list[GpuKind], dict[str, GpuKind], dict[int, int]]:
    """The kinds of trials, the kind of each by its node's name, and the panels of each kind's largest weight tile."""
    kinds, of_node = task_kinds({t.case.node.name: t.case.node for t in found})
    panels: dict[int, int] = {}
    for t in found:
        index = of_node[t.case.node.name].index
        for task in REGISTRY[t.case.node.op].tile(t.case.node, t.parts).weights[: t.most]:
            panels[index] = max([panels.get(index, 0), *(tile.panels for tile, _ in task)])
    return kinds, of_node, {index: most for index, most in panels.items() if most}


ALL = tuple(GPU_OPS)
"""The ops, each of which has a cubin of its own."""
