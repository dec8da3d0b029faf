"""Mutations of compiled engines are refused by the proof, or harmless by the oracle's rule: then they are accepted."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from support.mutate import CASES, engine, mutated
from support.mutated_models import MODELS, graphs
from support.oracle import wrong
from support.table_tools import put_together
from tilecompile.ir.node import OpNode
from tilecompile.verify.proof import VerifyError, verify
from tilecompile.verify.window import Window
from tilecompile.verify.windows import Proved

SAMPLE = (("tiny", 2), ("tiny reusing", 3), ("tiny reusing", 4), ("odd reusing", 2), ("shared", 3))
PROGRAMS = ("every program", 2)
"""An engine whose requests move between all step programs."""
ALL = (*((model, workers) for model in MODELS for workers in (2, 3, 8)), ("tiny reusing", 4), ("odd reusing", 4))

Table = dict[tuple[str, str], Counter[str]]


def nodes(model: str) -> list[OpNode]:
    """The operators of a model."""
    return [node for graph in graphs(model) for node in graph.nodes]


def run(engines: tuple[tuple[str, int], ...], times: int, seed: int) -> Table:
    """Makes every mutation a number of times on every engine; counts the outcomes."""
    table: Table = defaultdict(Counter)
    windows: dict[bytes, Window] = {}
    for model, workers in engines:
        for case in CASES:
            for k in range(times):
                parts = mutated(model, workers, *case, seed + k)
                if parts is None:
                    break
                tables = put_together(parts)
                want = wrong(tables, unroll=False)
                for how in (None, Proved(windows))[: 1 + (k % 4 == 0)]:
                    try:
                        operators, layers = [n.name for n in nodes(model)], [n.layer for n in nodes(model)]
                        verify(tables, operators, proved=how, layers=layers, stated=False)
                        text = None
                    except VerifyError as error:
                        text = str(error)
                    what = f"{case} of {model} with {workers} workers, seed {seed + k}"
                    assert (text is None) == (want is None), f"{what}: oracle {want}, proof {text}"
                table[case]["redundant" if want is None else "refused"] += 1
    return table


def show(table: Table) -> int:
    """Prints mutation and edge kind with their counts; returns the number of all."""
    print(f"\n{'mutation':<30} {'edge':<6} {'refused':>8} {'redundant':>10}")
    for name, kind in sorted(table, key=CASES.index):
        count = table[name, kind]
        print(f"{name:<30} {kind:<6} {count['refused']:>8} {count['redundant']:>10}")
    sums = [sum(c[key] for c in table.values()) for key in ("refused", "redundant")]
    print(f"{'all':<37} {sums[0]:>8} {sums[1]:>10}")
    return sum(sums)


def check(table: Table) -> None:
    """Every kind of mutation hit every kind of edge, and some of each were wrong."""
    for case in CASES:
        assert table[case]["refused"], f"no {case} was wrong"
        name = case[0]
        if name.startswith(("threshold", "tile")):
            assert not table[case]["redundant"], case


@pytest.mark.parametrize(("model", "workers"), [*SAMPLE, PROGRAMS])
def test_the_oracle_and_the_proof_accept_compiled_engines(model: str, workers: int) -> None:
    tables = put_together(engine(model, workers).parts)
    assert wrong(tables, unroll=False) is None
    verify(tables, [], stated=False)


def test_mutations_of_compiled_engines_are_refused_or_harmless() -> None:
    table = run(SAMPLE, 4, 0)
    assert show(table) >= 300
    check(table)


@pytest.mark.slow
def test_mutations_of_an_engine_with_every_program_are_refused_or_harmless() -> None:
    """Edges of states and caches are among them: what a program hands to another, and rows that another overwrites."""
    table = run((PROGRAMS,), 25, 0)
    assert show(table) >= 500


@pytest.mark.slow
def test_thousands_of_mutations_are_refused_or_harmless() -> None:
    table = run(ALL, 9, 1000)
    assert show(table) >= 2000
    check(table)
