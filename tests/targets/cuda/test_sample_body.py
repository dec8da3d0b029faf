"""The GPU body of sample on the host, its very text: the ids are those of the reference, and so of the CPU's body."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from support.cuda_bodies import Bench, prepare
from support.gpu_bodies import front_and_kernels
from support.opharness import any_seed, cases_of, expected
from tilecompile.ir.node import View
from tilecompile.ops.sample.cases import PENALTIES, make_case
from tilecompile.ops.sample.gpu import LISTED
from tilecompile.ops.testing import Case
from tilecompile.runtime.format import BIASED, BODY_TOKENS, COUNTED, MAX_STOP_IDS, SAMPLING
from tilecompile.targets.cuda.build import ARCHITECTURES, FORBIDDEN, build
from tilecompile.targets.cuda.emit import task_kinds


def chosen(cases: Sequence[Case], seed: int = 1, change: tuple[str, str] = ("", "")) -> list[list[int]]:
    """What the body gives for each case, on poisoned outputs and scratch memory."""
    named = [dataclasses.replace(c, node=dataclasses.replace(c.node, name=f"n{i}")) for i, c in enumerate(cases)]
    benches = [Bench(case, 1) for case in named]
    lib, kinds = prepare(benches, change)
    return [b.run(lib, kind, scratch, seed)[0].tolist() for b, (kind, scratch) in zip(benches, kinds, strict=True)]


def wanted(cases: Sequence[Case]) -> list[list[int]]:
    return [expected(case)[0].tolist() for case in cases]


def drawn(g: torch.Generator, vocab: int, rows: int = 2) -> Case:
    """A request with each parameter left out at times, on logits with and without ties."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=g))

    def flip() -> bool:
        return uniform(0, 1) < 0.5

    values = {"temperature": uniform(0.01, 3)} | (PENALTIES if flip() else {})
    values |= {"top_k": int(uniform(0, 1) ** 4 * (vocab + 2))} if flip() else {}
    values |= ({"top_p": uniform(0, 1)} if flip() else {}) | ({"min_p": uniform(0, 1) ** 3} if flip() else {})
    if flip():
        values |= {"flags": (COUNTED, BIASED)[flip()], "stop_count": 2}
    return make_case(g, (rows, rows, vocab, 0), values, ties=flip())


def test_ids_are_those_of_the_reference_on_the_ops_cases() -> None:
    """Greedy and drawn, every filter, ties, penalties, biases, forbidden ids; what can't be sampled."""
    seed = any_seed()
    cases = cases_of("sample", seed)
    assert chosen(cases, seed) == wanted(cases), f"seed {seed}"


@pytest.mark.parametrize("vocab", [1, 3, 200, 5000])
def test_ids_are_those_of_the_reference_on_random_requests(vocab: int) -> None:
    seed = any_seed()
    g = torch.Generator().manual_seed(seed)
    cases = [drawn(g, vocab) for _ in range(24)]
    assert chosen(cases, seed) == wanted(cases), f"seed {seed}"


def test_ids_are_those_of_the_reference_at_the_vocabulary_of_glm5() -> None:
    """With more ids left than the list has room for, and with few."""
    seed = any_seed()
    g = torch.Generator().manual_seed(seed)
    requests = [
        {"temperature": 1.0, "top_p": 0.95},
        {"temperature": 1.5, "top_k": 50, "top_p": 0.8, "min_p": 0.01} | PENALTIES,
        {"temperature": 30.0, "top_p": 0.9},
        {"temperature": 0.0} | PENALTIES,
    ]
    cases = [make_case(g, (1, 1, 154880, 0), values, ties=i == 1) for i, values in enumerate(requests)]
    assert chosen(cases, seed) == wanted(cases), f"seed {seed}"


@pytest.mark.parametrize("values", [{"top_k": 3}, {"top_p": 0.31}, {"top_p": 1e-12}, {"top_k": 700, "top_p": 0.5}])
@pytest.mark.parametrize("vocab", [LISTED // 2, LISTED + 700])
def test_equal_logits_leave_from_the_lowest_id_on(vocab: int, values: dict[str, float]) -> None:
    """All equal, or all but a few: in a list, and where there are too many for one."""
    g = torch.Generator().manual_seed(any_seed())
    cases = [make_case(g, (1, 1, vocab, 0), {"temperature": 1.0, **values}, True) for _ in range(4)]
    for i, case in enumerate(cases):
        case.tensors["x"].fill_(-2.5)
        case.tensors["x"][0, : 3 * i] -= 1
    assert chosen(cases) == wanted(cases)


def crowded(g: torch.Generator) -> Case:
    """As many stop ids and ids of the step as there can be, some of them both, and all of them the likeliest."""
    case = make_case(g, (BODY_TOKENS, BODY_TOKENS, 100, 0), PENALTIES | {"temperature": 1.0}, False)
    record = case.tensors["sampling"].numpy().view(SAMPLING.dtype)
    record["stop_count"], record["stop_begin"] = MAX_STOP_IDS, 1000
    record["stops"] = np.arange(MAX_STOP_IDS)
    case.tensors["ids"] = torch.arange(MAX_STOP_IDS - 3, MAX_STOP_IDS - 3 + BODY_TOKENS, dtype=torch.int32)
    case.tensors["x"][:, : MAX_STOP_IDS + BODY_TOKENS] += 10
    return case


def test_stop_ids_stay_forbidden_where_the_step_has_them_too() -> None:
    case = crowded(torch.Generator().manual_seed(any_seed()))
    (got,) = chosen([case])
    assert [got] == wanted([case])
    assert min(got) >= MAX_STOP_IDS


def test_ids_depend_on_no_order_of_threads() -> None:
    g = torch.Generator().manual_seed(any_seed())
    cases = [drawn(g, 3000) for _ in range(8)]
    assert chosen(cases, 1) == chosen(cases, 77) == chosen(cases, 12345)


@pytest.mark.parametrize("rows", [BODY_TOKENS, 3])
def test_a_step_of_fewer_tokens_touches_no_other_rows(rows: int) -> None:
    """Behind the last row of the step is an inaccessible page; its rows are those of the whole step."""
    case = drawn(torch.Generator().manual_seed(any_seed()), 300, rows)
    bench = Bench(case, 1)
    lib, ((kind, scratch),) = prepare([bench])
    whole = wanted([case])[0]
    for tokens in range(1, rows):
        assert bench.run(lib, kind, scratch, 1, tokens)[0].tolist() == whole[:tokens]


def test_the_one_row_of_a_step_follows_all_its_ids() -> None:
    """Of a program of five tokens, in steps of fewer: penalties count as many ids as the step has."""
    g = torch.Generator().manual_seed(any_seed())
    case = make_case(g, (5, 1, 40, 1), PENALTIES | {"temperature": 1.0, "stop_count": 0, "text_begin": 0}, False)
    case.tensors["x"].zero_()
    bench = Bench(case, 1)
    lib, ((kind, scratch),) = prepare([bench])
    views = case.node.operands
    seen = set()
    for tokens in range(1, 6):
        ids = case.tensors["ids"][:tokens]
        inputs = (views[0], View.of("ids", (tokens,), "i32"), *views[2:6])
        part = dataclasses.replace(
            case, node=dataclasses.replace(case.node, inputs=inputs), tensors=case.tensors | {"ids": ids}
        )
        seen |= set(wanted([part])[0])
        assert bench.run(lib, kind, scratch, 1, tokens)[0].tolist() == wanted([part])[0]
    assert len(seen) > 1


MISTAKES = {
    "a list without its end": ("if (room.listed <= SAMPLE_LISTED)", "if (true)"),
    "a list that is one interval short": ("if (interval(x) < from", "if (interval(x) <= from"),
    "equal ids leave from the highest on": ("key == least && id >= first", "key == least && (id <= first || !first)"),
    "min-p is left out": ("s.min_p > 0 ?", "s.min_p > 2 ?"),
    "a changed value isn't seen": ("room.marked[room.changed[i] / 32] |=", "room.marked[room.changed[i] / 32] ="),
    "the words of a group change places": ("id & 2 ? high : low", "id & 2 ? low : high"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_planted_mistakes_in_the_body_are_caught(name: str) -> None:
    g = torch.Generator().manual_seed(3)
    cases = [crowded(g), *(drawn(g, 3000) for _ in range(12))]
    cases += [make_case(g, (1, 1, 3000, 0), {"temperature": 1.0, "top_p": 0.5}, True) for _ in range(4)]
    cases += [make_case(g, (1, 1, 9000, 0), {"temperature": 9.0, "top_p": 0.9}, False) for _ in range(4)]
    assert chosen(cases) == wanted(cases)
    try:
        found = chosen(cases, change=MISTAKES[name])
    except (AssertionError, ValueError):
        return
    assert found != wanted(cases)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_body_compiles_for_gpus_within_limits(architecture: str) -> None:
    """GLM-5's vocabulary, one token and four: no spills, no local memory, no calls."""
    g = torch.Generator().manual_seed(0)
    shapes = [(1, 1, 154880, 0), (4, 4, 154880, 0), (4, 1, 1031, 1)]
    nodes = [dataclasses.replace(make_case(g, s, {}, False).node, name=f"n{i}") for i, s in enumerate(shapes)]
    kinds, _ = task_kinds({node.name: node for node in nodes})
    built = build(front_and_kernels(kinds, architecture), architecture)
    assert len(built.kernels) == len(nodes)
    for name, resources in built.kernels.items():
        assert resources.spills == resources.local == 0, f"{name}: {resources}"
        assert resources.registers <= 168, f"{name}: {resources}"
    for word in FORBIDDEN:
        assert word not in built.ptx, word
