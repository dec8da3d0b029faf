"""Sampling against transformers' processors, against the softmax, and against a generator's published numbers."""

from __future__ import annotations

import ctypes
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from support.opharness import RUNNABLE, any_seed, build_bodies, expected, run_body
from tilecompile.ir.node import OpNode, View
from tilecompile.ops.sample.cases import PENALTIES, make_case
from tilecompile.ops.sample.reference import adjusted, choose, gumbel, kept, words
from tilecompile.ops.testing import Case
from tilecompile.runtime.format import BIASED, COUNTED, SAMPLING, SAMPLING_WORDS
from tilecompile.targets.cpu.build import ISAS, build
from tilecompile.targets.cpu.emit import bodies_source, task_kinds

VOCAB = 61
DRAWS = 200_000

SHIM = f"""
// Draws once at each position from `begin` on.
extern "C" void draw(const Sampling* s, const float* logits, int count, uint32_t begin, int32_t* out) {{
  static const float bias[{VOCAB}] = {{}};
  static const int32_t counts[{VOCAB}] = {{}}, ids[1] = {{}};
  alignas(64) static char scratch[sizeof(sampling::Room<{VOCAB}>)];
  for (int i = 0; i < count; ++i)
    out[i] = sampling::sample_row<{VOCAB}>(*s, logits, bias, counts, ids, 1, begin + i - 1, scratch);
}}
extern "C" void random_words(uint64_t seed, uint32_t position, uint32_t group, uint32_t* out) {{
  uint32_t words[4];
  sampling::philox(seed, position, group, words);
  memcpy(out, words, sizeof words);
}}
"""


def node() -> OpNode:
    inputs = (
        View.of("x", (1, VOCAB), "f32"),
        *(View.of(name, (1,), "i32") for name in ("ids", "position")),
        View.of("sampling", (SAMPLING_WORDS,), "i32"),
        View.of("bias", (VOCAB,), "f32"),
        View.of("counts", (VOCAB,), "i32"),
    )
    return OpNode("sample", "sample", inputs, (), (View.of("y", (1,), "i32"),), {"shift": 0})


@cache
def library(wrong: tuple[str, str] | None = None) -> ctypes.CDLL:
    """The body, or one with a mistake: the second text in place of the first."""
    source = bodies_source(task_kinds({"sample": node()})[0]) + SHIM
    if wrong:
        assert source.count(wrong[0]) == 1
        source = source.replace(*wrong)
    with tempfile.TemporaryDirectory(prefix="tilecompile-test-") as folder:
        path = Path(folder, "sample.cpp")
        path.write_text(source)
        build(path, path.with_suffix(".so"), ISAS["portable"])
        return ctypes.CDLL(str(path.with_suffix(".so")))


def record(**values: Any) -> npt.NDArray[np.void]:
    out = np.zeros(1, SAMPLING.dtype)
    for name, value in ({"temperature": 1.0, "top_p": 1.0, "repetition": 1.0} | values).items():
        out[name] = value
    return out


def draws(
    of: npt.NDArray[np.void], logits: npt.NDArray[np.float32], count: int, wrong: tuple[str, str] | None = None
) -> npt.NDArray[np.int32]:
    """What the body draws at positions 1, 2, 3 …"""
    out = np.zeros(count, np.int32)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (of, logits, out)]
    library(wrong).draw(*pointers[:2], count, 1, pointers[2])
    return out


def expected_draws(of: npt.NDArray[np.void], logits: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int32]:
    nothing = np.zeros(VOCAB, np.int32)
    ids = np.zeros(1, np.int32)
    found = [choose(of[0], logits, nothing.astype(np.float32), nothing, ids, i) for i in range(count)]
    return np.array(found, np.int32)


# --- against transformers ---------------------------------------------------------------------------------------------


def drawn_request(g: np.random.Generator) -> dict[str, Any]:
    """Parameters, each left out at times."""

    def maybe(value: Any) -> Any:
        return value if g.random() < 0.6 else None

    return {
        "bias": maybe({int(i): float(g.normal()) for i in g.choice(200, 20, replace=False)}),
        "repetition": maybe(float(g.uniform(0.7, 1.6))),
        "temperature": float(g.uniform(0.3, 2)),
        "top_k": maybe(int(g.integers(1, 200))),
        "top_p": maybe(float(g.uniform(0.05, 0.999))),
        "min_p": maybe(float(g.uniform(0, 0.4))),
    }


def of_transformers(asked: dict[str, Any], logits: npt.NDArray[np.float32], ids: list[int]) -> torch.Tensor:
    """The scores that transformers' processors leave, in the order of `GenerationMixin._get_logits_processor`.

    Sums of probabilities are in f64, and sorting is stable (by default torch has some order of equal numbers, which
    differs between machines): what is left out must not hang on either.
    """
    first, second = LogitsProcessorList(), LogitsProcessorList()
    if asked["bias"] is not None:
        first.append(SequenceBiasLogitsProcessor({(i,): b for i, b in asked["bias"].items()}))
    if asked["repetition"] is not None:
        first.append(RepetitionPenaltyLogitsProcessor(asked["repetition"]))
    first.append(TemperatureLogitsWarper(asked["temperature"]))
    if asked["top_k"] is not None:
        first.append(TopKLogitsWarper(asked["top_k"]))
    if asked["top_p"] is not None:
        second.append(TopPLogitsWarper(asked["top_p"]))
    if asked["min_p"] is not None:
        second.append(MinPLogitsWarper(asked["min_p"]))
    before, scores = torch.tensor([ids]), torch.from_numpy(logits.copy())[None]
    with mock.patch.object(torch, "sort", partial(torch.sort, stable=True)):
        result: torch.Tensor = second(before, first(before, scores).double())[0]
    return result


def ours(asked: dict[str, Any], logits: npt.NDArray[np.float32], ids: list[int]) -> torch.Tensor:
    """The same by the reference of the op; part of the ids is in the step, the rest counted."""
    stated = {name: asked[name] for name in ("temperature", "top_k", "top_p", "min_p", "repetition") if asked[name]}
    flags = (COUNTED if asked["repetition"] is not None else 0) | (BIASED if asked["bias"] is not None else 0)
    of = record(flags=flags, text_begin=3, **stated)[0]
    bias, counts = np.zeros(len(logits), np.float32), np.zeros(len(logits), np.int32)
    for i, value in (asked["bias"] or {}).items():
        bias[i] = value
    counts[ids[:3]] = 1
    for i in ids[3:-2]:
        counts[i] += 2
    x = adjusted(of, logits, bias, counts, np.array(ids[-2:], np.int32), len(ids) - 2)
    x = x / of["temperature"] + np.float32(0)
    out = torch.full((len(logits),), -torch.inf, dtype=torch.float64)
    left = torch.from_numpy(kept(of, x))
    out[left] = torch.from_numpy(x).double()[left]
    return out


@pytest.mark.parametrize("ties", [False, True], ids=["", "ties"])
def test_what_is_left_and_its_probabilities_are_those_of_transformers(ties: bool) -> None:
    seed = any_seed()
    g = np.random.default_rng(seed)
    for _ in range(150):
        asked, scale = drawn_request(g), g.uniform(0.2, 5)
        logits = g.normal(0, scale, 200).astype(np.float32)
        if ties:
            logits = np.round(2 * logits) / 2
        ids = [int(i) for i in g.integers(0, 200, int(g.integers(5, 40)))]
        want, got = of_transformers(asked, logits, ids), ours(asked, logits, ids)
        assert torch.equal(want > -torch.inf, got > -torch.inf), f"seed {seed}: {asked}"
        both = want > -torch.inf
        difference = want.log_softmax(0)[both] - got.log_softmax(0)[both]
        assert float(difference.abs().max()) <= 1e-5, f"seed {seed}: {asked}"


def test_equal_logits_at_the_edge_of_top_p_leave_from_the_lowest_id_on() -> None:
    x = np.zeros(10, np.float32)
    assert kept(record(top_p=0.55)[0], x).tolist() == [4, 5, 6, 7, 8, 9]


def test_penalties_count_ids_of_prompt_and_text() -> None:
    """Presence and frequency as vLLM has them: the generated text alone counts, each occurrence for the frequency."""
    of = record(flags=COUNTED, repetition=2.0, presence=0.25, frequency=0.5, text_begin=10)[0]
    counts = np.array([0, 1, 4, 5, 0, 0], np.int32)  # never; in the prompt; twice in the text; both; never; never
    logits = np.array([1, 1, 1, -1, 1, 1], np.float32)
    found = adjusted(of, logits, logits, counts, np.array([4, 5, 5], np.int32), 9)
    assert found.tolist() == [1, 0.5, 0.5 - 1 - 0.25, -2 - 1 - 0.25, 0.5, 0.5 - 1 - 0.25]


# --- the draw ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "position", "group"), [(0, 0, 0), (0x299F31D0A4093822, 0xFFFFFFFF, 999)])
def test_body_and_reference_have_the_same_words(seed: int, position: int, group: int) -> None:
    out = (ctypes.c_uint32 * 4)()
    library().random_words(ctypes.c_uint64(seed), ctypes.c_uint32(position), ctypes.c_uint32(group), out)
    assert list(out) == words(seed, position, 4 * group + 4)[-4:].tolist()


def test_words_are_those_that_philox_publishes() -> None:
    """The known answer for counter and key zero in kat_vectors of Random123."""
    assert [f"{w:08x}" for w in words(0, 0, 4)] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


def test_noise_has_the_gumbel_distribution() -> None:
    g = np.sort(gumbel(np.concatenate([words(5, p, 1000) for p in range(100)])))
    steps = np.arange(len(g)) / len(g)
    assert np.abs(np.exp(-np.exp(-g)) - steps).max() < 1.95 / np.sqrt(len(g))  # Kolmogorov, p 0.001


def test_noise_of_the_extreme_words() -> None:
    ends = np.array([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF], np.uint32)
    u = (ends.astype(np.longdouble) + 0.5) / 2**32
    want = -np.log(-np.log(u))
    assert np.allclose(gumbel(ends), want.astype(np.float64), rtol=1e-14, atol=1e-14)


LOGITS = np.random.default_rng(3).normal(0, 2, VOCAB).astype(np.float32)

REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "hot": {"temperature": 1.7},
    "filtered": {"temperature": 1.2, "top_p": 0.8, "top_k": 30, "min_p": 0.01},
}


def p_value(counts: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64]) -> float:
    """Of Pearson's test; ids that are hardly ever expected are taken together. 0 if an id was drawn that can't be."""
    if counts[probabilities == 0].any():
        return 0.0
    rare = probabilities * counts.sum() < 10
    want = np.append(probabilities[~rare], probabilities[rare].sum()) * counts.sum()
    got = np.append(counts[~rare], counts[rare].sum())
    want, got = want[want > 0], got[want > 0]
    half = torch.tensor([(len(want) - 1) / 2, ((got - want) ** 2 / want).sum() / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(*half))


def of_softmax(request: dict[str, Any]) -> npt.NDArray[np.float64]:
    """The distribution by transformers' processors."""
    neutral = dict.fromkeys(("bias", "repetition", "top_k", "top_p", "min_p")) | {"temperature": 1.0}
    distribution: npt.NDArray[np.float64] = of_transformers(neutral | request, LOGITS, [0]).softmax(0).numpy()
    return distribution


def chosen(request: dict[str, Any], seed: int, wrong: tuple[str, str] | None = None) -> npt.NDArray[np.int64]:
    found = draws(record(seed=seed, **request), LOGITS, DRAWS, wrong)
    return np.bincount(found, minlength=VOCAB)


@pytest.mark.parametrize("name", REQUESTS)
def test_ids_are_drawn_by_the_softmax(name: str) -> None:
    assert p_value(chosen(REQUESTS[name], 20261201), of_softmax(REQUESTS[name])) > 0.001


WRONG: dict[str, tuple[str, str, str]] = {
    "words of a group are equal": ("plain", "words[id % 4]", "words[id % 2]"),
    "noise of another distribution": ("plain", "return -log_of(-log_of(", "return 0.9 * -log_of(-log_of("),
    "a skipped id": ("plain", "x + gumbel_bound(word) < best", "x + gumbel_bound(word) - 2.5 < best"),
    "no filter": ("filtered", "const bool all = (", "const bool all = true || ("),
    "top-p of the wrong end": ("filtered", "mul(1.0 - top_p, double(total))", "mul(top_p, double(total))"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_draw_is_seen_in_the_distribution(what: str) -> None:
    name, right, wrong = WRONG[what]
    assert p_value(chosen(REQUESTS[name], 20261201, (right, wrong)), of_softmax(REQUESTS[name])) < 1e-6


SEEN_BY_EQUALITY: dict[str, tuple[str, str]] = {
    "the next seed": ("philox(s.seed, position", "philox(s.seed + 1, position"),
    "the position before": ("philox(s.seed, position + n", "philox(s.seed, position + n - 1"),
    "another key schedule": ("k0 += 0x9E3779B9u", "k0 += 0x9E3779B8u"),
    "half of the seed": ("k1 = uint32_t(seed >> 32)", "k1 = uint32_t(seed >> 33)"),
    "nine rounds": ("round < 10", "round < 9"),
}


def differing(request: dict[str, Any], wrong: tuple[str, str] | None = None) -> int:
    of = record(seed=0x8765432112345678, **request)
    return int((draws(of, LOGITS, 2000, wrong) != expected_draws(of, LOGITS, 2000)).sum())


@pytest.mark.parametrize("name", REQUESTS)
def test_body_draws_what_the_reference_draws(name: str) -> None:
    assert differing(REQUESTS[name]) == 0


@pytest.mark.parametrize("what", SEEN_BY_EQUALITY)
def test_a_wrong_generator_draws_something_else(what: str) -> None:
    assert differing({}, SEEN_BY_EQUALITY[what]) > 500


def random_case(g: torch.Generator, vocab: int) -> Case:
    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=g))

    def flip() -> bool:
        return uniform(0, 1) < 0.5

    values = {"temperature": uniform(0.01, 3), "top_k": int(uniform(0, vocab + 2))} | (PENALTIES if flip() else {})
    values |= ({"top_p": uniform(0, 1)} if flip() else {}) | ({"min_p": uniform(0, 1) ** 3} if flip() else {})
    return make_case(g, (2, 2, vocab, 0), values, ties=flip())


@pytest.mark.slow
@pytest.mark.parametrize("vocab", [1, 2, 5, 200, 5000])
def test_body_and_reference_agree_on_random_requests(vocab: int) -> None:
    """Through the whole body, with ties, biases and penalties."""
    seed = any_seed()
    g = torch.Generator().manual_seed(seed)
    cases = [random_case(g, vocab) for _ in range(400)]
    for isa in RUNNABLE:
        lib, kinds = build_bodies([cases[0].node], isa)
        for case in cases:
            got = run_body(lib, kinds["sample"], case, 1)
            assert torch.equal(got[0], expected(case)[0]), f"seed {seed}"
