"""The TileLang bodies of the GPU targets: as C against the ops' eager references, and as CUDA through the rewriter."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from gpu_bodies import TILE_OPS, build_c_bodies
from opharness import any_seed, assert_close, cases_of, expected, run_body, same_bits

from tilecompile.ops.base import REGISTRY
from tilecompile.ops.testing import Case

TOLERANCE = 1e-4
"""Max error over RMS of f32 results; those of selections and copies must be equal."""


def check(library, kinds, case: Case, parts: int, what: str) -> None:  # type: ignore[no-untyped-def]
    fresh = dataclasses.replace(case, tensors={k: v.clone() for k, v in case.tensors.items()})
    want = expected(fresh)
    mutated = {k: v for k, v in fresh.tensors.items() if not same_bits(v, case.tensors[k])}
    again = dataclasses.replace(case, tensors={k: v.clone() for k, v in case.tensors.items()})
    got = run_body(library, kinds[case.node.name], again, parts)
    tolerance = TOLERANCE if case.tolerance else 0
    if case.written is not None:
        left = got[0][~case.written]
        assert torch.equal(left.isnan(), torch.ones_like(left, dtype=torch.bool)), f"{what}: wrote too much"
        got[0], want[0] = got[0][case.written], want[0][case.written]
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, tolerance, what)
    for name, w in mutated.items():
        assert_close(again.tensors[name], w, tolerance, f"{what} {name}")


@pytest.mark.parametrize("op", [op for op in TILE_OPS if REGISTRY[op].gpu is not None])
def test_body_agrees_with_reference(op: str) -> None:
    seed = any_seed()
    cases = cases_of(op, seed)
    library, kinds = build_c_bodies([c.node for c in cases])
    for case in cases:
        for parts in (1, 2, 5):
            check(library, kinds, case, parts, f"{op} {case.node.name} parts={parts} seed={seed}")
