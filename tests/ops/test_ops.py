"""Every op's CPU body against its eager reference, on each instruction set that this machine can run."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from support.opharness import (
    OPS,
    RUNNABLE,
    any_seed,
    assert_close,
    build_bodies,
    cases_of,
    expected,
    run_body,
    same_bits,
)
from tilecompile.targets.cpu.build import Isa


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("isa", RUNNABLE, ids=lambda isa: isa.name)
def test_body_agrees_with_reference(op: str, isa: Isa) -> None:
    seed = any_seed()
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
