"""Every op's CPU body against its eager reference, on each instruction set that this machine can run."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch
from opharness import assert_close, build_bodies, expected, run_body

import tilecompile.ops  # noqa: F401  (registers the ops)
from tilecompile.build import ISAS
from tilecompile.ops.base import REGISTRY
from tilecompile.ops.testing import Case
from tilecompile.runtime.machine import cpu_features

RUNNABLE = [isa for isa in ISAS.values() if set(isa.features) <= cpu_features()]


def cases_of(op: str, seed: int) -> list[Case]:
    """The op's cases with names made distinct."""
    module = importlib.import_module(f"tilecompile.ops.{op}.cases")
    cases = list(module.cases(torch.Generator().manual_seed(seed)))
    return [
        dataclasses.replace(c, node=dataclasses.replace(c.node, name=f"{c.node.name}_{i}")) for i, c in enumerate(cases)
    ]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two contiguous tensors are equal bit by bit; not-a-number equals itself."""
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("isa", RUNNABLE, ids=lambda isa: isa.name)
@pytest.mark.parametrize("op", [name for name in REGISTRY if name != "commit"])
def test_body_agrees_with_reference(op: str, isa: object) -> None:
    seed = int(torch.randint(1 << 30, ()))
    cases = cases_of(op, seed)
    assert cases
    library, kinds = build_bodies([c.node for c in cases], isa)
    for case in cases:
        for parts in (1, 2, 5):
            fresh = dataclasses.replace(case, tensors={k: v.clone() for k, v in case.tensors.items()})
            want = expected(fresh)
            mutated = {k: v for k, v in fresh.tensors.items() if not same_bits(v, case.tensors[k])}
            again = dataclasses.replace(case, tensors={k: v.clone() for k, v in case.tensors.items()})
            got = run_body(library, kinds[case.node.name], again, parts)
            what = f"{op} {case.node.name} parts={parts} seed={seed}"
            if case.written is not None:
                left = got[0][~case.written]
                assert torch.equal(left.isnan(), torch.ones_like(left, dtype=torch.bool)), f"{what}: wrote too much"
                got[0], want[0] = got[0][case.written], want[0][case.written]
            for g, w in zip(got, want, strict=True):
                assert_close(g, w, case.tolerance, what)
            for name, w in mutated.items():
                assert_close(again.tensors[name], w, case.tolerance, f"{what} {name}")
