"""CPU bodies in steps of fewer tokens than their operands have rows: what they leave alone, and the rest."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np
import pytest

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
from support.partial_steps import by_token, first, room, run_partly
from tilecompile.ops.testing import Case
from tilecompile.targets.cpu.build import Isa
from tilecompile.targets.cpu.emit import task_kinds

ISAS = [pytest.param(isa, id=isa.name, marks=[pytest.mark.slow] if i else []) for i, isa in enumerate(RUNNABLE)]
"""The widest instruction set that this machine runs; the others cost as much time again."""


JOINT = {"dispatch"}
"""Ops whose rows depend on all tokens of the step: slots are numbered over these."""


def copied(case: Case) -> Case:
    return dataclasses.replace(case, tensors={k: v.clone() for k, v in case.tensors.items()})


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("isa", ISAS)
def test_a_step_of_fewer_tokens_touches_no_other_rows_and_has_the_same_bits(op: str, isa: Isa) -> None:
    """Behind the last row of the step is an inaccessible page; its rows are those of the whole step and reference."""
    seed = any_seed()
    rng, cases = np.random.default_rng(seed), cases_of(op, seed)
    library, kinds = build_bodies([c.node for c in cases], isa)
    partial = 0
    for case in cases:
        if room(case.node) == 1:
            continue
        whole = copied(case)
        together = run_body(library, kinds[case.node.name], whole, 1)
        for tokens in rng.choice(np.arange(1, room(case.node)), min(3, room(case.node) - 1), replace=False).tolist():
            what = f"{op} {case.node.name} tokens={tokens} seed={seed}"
            part, reference = copied(case), first(copied(case), tokens)
            got, want = run_partly(library, kinds[case.node.name], part, 2, tokens), expected(reference)
            written = reference.written
            for i, (g, w) in enumerate(zip(got, want, strict=True)):
                if i == 0 and written is not None:
                    assert g[~written].isnan().all(), f"{what}: wrote too much"
                    g, w = g[written], w[written]
                if w.numel():
                    assert_close(g, w, case.tolerance, what)
            for view, g, all_of in zip(case.node.outputs, got, together, strict=True):
                if by_token(case.node, view) and op not in JOINT:
                    assert same_bits(g.contiguous(), all_of[:tokens].contiguous()), what
            for name in {v.tensor for v in case.node.inputs if not by_token(case.node, v)}:
                assert_close(part.tensors[name], reference.tensors[name], case.tolerance, f"{what} {name}")
            partial += 1
    assert partial


@pytest.mark.parametrize("op", OPS)
def test_statements_are_the_same_for_any_number_of_tokens(op: str) -> None:
    """So programs share task kinds: what is left of a case with fewer rows has the kind of the whole."""
    nodes = defaultdict(list)
    for case in cases_of(op, 1):
        for tokens in {1, room(case.node)}:
            nodes[case.node.name].append(dataclasses.replace(first(case, tokens).node, name=f"of {tokens}"))
    for name, found in nodes.items():
        kinds, _ = task_kinds({node.name: node for node in found})
        assert len(kinds) == 1, f"{name}: {[kind.statement for kind in kinds]}"
