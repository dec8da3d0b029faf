"""Sampling in the resident kernel: each parameter on a whole engine, against the rules and the engine's own logits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import tilecompile
from support.damage import copy, edit_manifest
from tilecompile import EngineError, InputError, SamplingParams
from tilecompile.interpret.interpreter import Interpreter
from tilecompile.ops.sample.reference import choose
from tilecompile.runtime.sampler import sampling_record

PROMPT = [5, 17, 200, 17, 42, 9, 120]

REQUESTS: dict[str, SamplingParams] = {
    "greedy": SamplingParams(24, temperature=0),
    "hot": SamplingParams(24, temperature=1.5, seed=3),
    "filtered": SamplingParams(24, temperature=1.2, top_k=40, top_p=0.9, min_p=0.01, seed=4),
    "greedy with penalties": SamplingParams(24, repetition_penalty=0.7, presence_penalty=-0.3, frequency_penalty=0.4),
    "all": SamplingParams(
        24,
        temperature=0.9,
        top_p=0.95,
        repetition_penalty=1.2,
        presence_penalty=0.2,
        frequency_penalty=0.1,
        logit_bias={7: 1.5, 200: -3.0},
        min_tokens=20,
        stop_token_ids=tuple(range(1, 60)),
        seed=1 << 63,
    ),
}


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[tilecompile.Engine]:
    with tilecompile.load(tiny, threads=2) as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def fresh(engine: tilecompile.Engine) -> None:
    engine.reset()


def by_the_rules(engine: tilecompile.Engine, params: SamplingParams, tokens: list[int]) -> list[int]:
    """What the rules choose after each id of a text, from the engine's logits there."""
    resolved = params.resolved(engine.manifest)
    ids = PROMPT + tokens
    logits = engine.score(ids[:-1])[len(PROMPT) - 1 :]
    record = sampling_record(resolved, len(PROMPT))[0]
    bias = np.zeros(engine.manifest.vocab_size, np.float32)
    bias[list(resolved.logit_bias)] = list(resolved.logit_bias.values())
    chosen = []
    for i, row in enumerate(logits):
        counts = np.zeros(len(bias), np.int32)
        counts[PROMPT] = 1
        np.add.at(counts, tokens[: max(0, i - 1)], 2)
        last = len(PROMPT) + i - 1
        chosen.append(choose(record, row, bias, counts, np.array(ids[last : last + 1], np.int32), last))
    return chosen


@pytest.mark.parametrize("name", REQUESTS)
def test_every_token_is_the_one_that_the_rules_choose(name: str, engine: tilecompile.Engine) -> None:
    tokens = engine.generate(PROMPT, REQUESTS[name]).tokens
    assert by_the_rules(engine, REQUESTS[name], tokens) == tokens


def test_an_engine_of_several_devices_chooses_by_the_rules_too(two_devices: Path) -> None:
    with tilecompile.load(two_devices) as loaded:
        tokens = loaded.generate(PROMPT, REQUESTS["all"]).tokens
        assert by_the_rules(loaded, REQUESTS["all"], tokens) == tokens


def test_parameters_change_from_request_to_request_without_a_launch(engine: tilecompile.Engine) -> None:
    first = {name: engine.generate(PROMPT, params).tokens for name, params in REQUESTS.items()}
    again = {name: engine.generate(PROMPT, params).tokens for name, params in reversed(REQUESTS.items())}
    assert first == again
    assert len({tuple(tokens) for tokens in first.values()}) == len(REQUESTS)
    assert engine.stats.launches == 1


def test_a_cached_prefix_changes_nothing(engine: tilecompile.Engine) -> None:
    """Ids that the caches hold count for penalties too."""
    params = replace(REQUESTS["all"], drafts=0)  # a layer that drafts caches a position less
    want = engine.generate(PROMPT, params)
    engine.generate([*PROMPT[:-1], 3], SamplingParams(4, drafts=0))
    again = engine.generate(PROMPT, params)
    assert again.stats.cached_tokens == len(PROMPT) - 1
    assert again.tokens == want.tokens


@pytest.mark.parametrize("name", ["hot", "all"])
def test_threads_and_drafts_change_nothing(name: str, tiny: Path, engine: tilecompile.Engine) -> None:
    want = engine.generate(PROMPT, REQUESTS[name]).tokens
    with tilecompile.load(tiny, threads=1) as other:
        assert other.generate(PROMPT, REQUESTS[name]).tokens == want
    for depth in range(1, engine.manifest.programs.drafts + 1):
        engine.reset()
        assert engine.generate(PROMPT, replace(REQUESTS[name], drafts=depth)).tokens == want


def test_a_drawn_seed_is_stated_and_repeats_the_text(engine: tilecompile.Engine) -> None:
    first, second = (engine.generate(PROMPT, SamplingParams(16, temperature=2)) for _ in range(2))
    assert first.tokens != second.tokens
    for out in (first, second):
        again = engine.generate(PROMPT, SamplingParams(16, temperature=2, seed=out.stats.seed))
        assert again.tokens == out.tokens


def test_the_interpreter_draws_the_same(tiny: Path, engine: tilecompile.Engine) -> None:
    def allowed(tokens: Sequence[int]) -> npt.NDArray[np.bool_]:
        return np.arange(engine.manifest.vocab_size) % 5 != len(tokens) % 5

    params = replace(REQUESTS["all"], max_new_tokens=6, min_tokens=3, allowed_tokens=allowed)
    want = engine.generate(PROMPT, params)
    assert Interpreter(tiny).generate(PROMPT, params) == want.tokens
    assert Interpreter(tiny, 4).generate(PROMPT, replace(REQUESTS["all"], max_new_tokens=6), drafts=2) == (
        engine.generate(PROMPT, replace(REQUESTS["all"], max_new_tokens=6)).tokens
    )


# --- ends -------------------------------------------------------------------------------------------------------------


def test_stop_ids_of_a_request_end_it(engine: tilecompile.Engine) -> None:
    tokens = engine.generate(PROMPT, 8).tokens
    cut = tokens.index(tokens[4])
    out = engine.generate(PROMPT, SamplingParams(8, stop_token_ids=(tokens[4],)))
    assert (out.tokens, out.stats.finish) == (tokens[: cut + 1], "stop")
    assert engine.text is not None
    assert out.text == engine.text.decode(tokens[:cut])
    assert engine.generate(PROMPT, 8).tokens == tokens


def test_stop_ids_wait_for_the_least_number_of_tokens(engine: tilecompile.Engine) -> None:
    every = tuple(range(engine.manifest.vocab_size - 60, engine.manifest.vocab_size))
    hot = SamplingParams(50, temperature=3, seed=8, stop_token_ids=every)
    for least in (0, 1, 7):
        tokens = engine.generate(PROMPT, replace(hot, min_tokens=least)).tokens
        stops = [i for i, token in enumerate(tokens) if token in every]
        assert stops == [len(tokens) - 1]
        assert len(tokens) > least


def test_the_models_stop_ids_are_ignored_on_request(
    tmp_path: Path, tiny: Path, engine: tilecompile.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = engine.generate(PROMPT, 8).tokens
    path = copy(tiny, tmp_path / "engine")
    edit_manifest(path, lambda data: data.update(eos_token_ids=[tokens[3]]))
    monkeypatch.setattr("tilecompile.runtime.load.check_contract", lambda manifest, tables: None)  # it has other ids
    with tilecompile.load(path) as other:
        assert other.generate(PROMPT, 8).stats.finish == "stop"
        assert other.generate(PROMPT, SamplingParams(8, ignore_eos=True)).tokens == tokens


# --- masks ------------------------------------------------------------------------------------------------------------


class Mask:
    """Allows the ids that leave a remainder by 7: that of the number of tokens so far."""

    def __init__(self, vocab: int, packed: bool = False) -> None:
        self.vocab, self.packed = vocab, packed
        self.seen: list[list[int]] = []

    def __call__(self, tokens: Sequence[int]) -> npt.ArrayLike:
        self.seen.append(list(tokens))
        allowed = np.arange(self.vocab) % 7 == len(tokens) % 7
        return np.packbits(allowed, bitorder="little") if self.packed else allowed


@pytest.mark.parametrize("packed", [False, True])
def test_each_token_is_one_that_the_mask_allows(packed: bool, engine: tilecompile.Engine) -> None:
    mask = Mask(engine.manifest.vocab_size, packed)
    tokens = engine.generate(PROMPT, SamplingParams(12, temperature=1, seed=2, allowed_tokens=mask)).tokens
    assert [token % 7 for token in tokens] == [i % 7 for i in range(12)]
    assert mask.seen == [tokens[:i] for i in range(12)]


def test_a_stream_asks_for_masks_as_it_is_read(engine: tilecompile.Engine) -> None:
    params = SamplingParams(6, temperature=1, seed=2, allowed_tokens=Mask(engine.manifest.vocab_size))
    want = engine.generate(PROMPT, params).tokens
    assert list(engine.stream(PROMPT, params)) == want


def test_a_paused_request_can_be_aborted(engine: tilecompile.Engine) -> None:
    want = engine.generate(PROMPT, 4).tokens
    for close in (True, False):
        stream = engine.stream(PROMPT, SamplingParams(allowed_tokens=Mask(engine.manifest.vocab_size)))
        next(stream)
        if close:
            stream.close()
        else:
            stream.abort()
            assert len(list(stream)) <= 1
        assert stream.stats is not None
        assert stream.stats.finish == "aborted"
        assert engine.generate(PROMPT, 4).tokens == want


def test_a_slow_mask_is_no_stall(tiny: Path) -> None:
    def slow(tokens: Sequence[int]) -> npt.ArrayLike:
        time.sleep(0.3)
        return np.ones(vocab, bool)

    with tilecompile.load(tiny, stall_seconds=0.05) as engine:
        vocab = engine.manifest.vocab_size
        want = engine.generate(PROMPT, 3).tokens
        assert engine.generate(PROMPT, SamplingParams(3, allowed_tokens=slow)).tokens == want


def test_a_mask_is_asked_for_in_the_thread_that_waits(engine: tilecompile.Engine) -> None:
    threads = set()

    def mask(tokens: Sequence[int]) -> npt.ArrayLike:
        threads.add(threading.get_ident())
        return np.ones(engine.manifest.vocab_size, bool)

    engine.generate(PROMPT, SamplingParams(3, allowed_tokens=mask))
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize(
    ("mask", "error", "want"),
    [
        (
            lambda tokens: np.ones(5, bool),
            InputError,
            r"allowed_tokens gave bool \[5\] after 0 tokens, want bool \[300\]",
        ),
        (lambda tokens: [1.0] * 300, InputError, r"allowed_tokens gave float64 \[300\] after 0 tokens"),
        (lambda tokens: np.arange(300) < 9 - 3 * len(tokens), InputError, "allows no token after 3 tokens"),
        (lambda tokens: np.arange(300) == tokens[5], IndexError, "index out of range"),
    ],
)
def test_a_wrong_mask_ends_the_request(mask: Any, error: Any, want: str, engine: tilecompile.Engine) -> None:
    expected = engine.generate(PROMPT, 4).tokens
    with pytest.raises(error, match=want):
        engine.generate(PROMPT, SamplingParams(allowed_tokens=mask, ignore_eos=True))
    assert engine.generate(PROMPT, 4).tokens == expected


def test_a_mask_of_stop_ids_before_the_least_number_of_tokens_is_an_error(engine: tilecompile.Engine) -> None:
    params = SamplingParams(
        9, min_tokens=5, stop_token_ids=(4,), allowed_tokens=lambda tokens: np.arange(300) == (4 if tokens else 8)
    )
    with pytest.raises(EngineError, match=f"no id is allowed after position {len(PROMPT)} "):
        engine.generate(PROMPT, params)


# --- log-probabilities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 20])
def test_log_probabilities_are_those_of_the_model(count: int, engine: tilecompile.Engine) -> None:
    params = replace(REQUESTS["all"], logprobs=count)
    out = engine.generate(PROMPT, params)
    assert out.tokens == engine.generate(PROMPT, REQUESTS["all"]).tokens
    logits = engine.score(PROMPT + out.tokens[:-1])[len(PROMPT) - 1 :].astype(np.float64)
    want = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert out.logprobs is not None
    assert len(out.logprobs) == len(out.tokens)
    for token, row, found in zip(out.tokens, want, out.logprobs, strict=True):
        assert abs(found.logprob - row[token]) <= 1e-5
        order = np.argsort(-row, kind="stable")[:count]
        assert [i for i, _ in found.top] == order.tolist()
        assert np.allclose([value for _, value in found.top], row[order], rtol=0, atol=1e-5)


def test_log_probabilities_come_with_each_token_of_a_stream_and_only_on_request(engine: tilecompile.Engine) -> None:
    params = SamplingParams(5, logprobs=2)
    want = engine.generate(PROMPT, params).logprobs
    stream = engine.stream(PROMPT, params)
    assert [stream.logprobs for _ in stream] == want
    assert engine.generate(PROMPT, 5).logprobs is None


# --- numbers that aren't finite ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_end_the_request(value: float, tiny: Path) -> None:
    with tilecompile.load(tiny) as engine:
        names = [b["tensor"] for b in engine.manifest.data["buffers"]]
        number = names.index("model.embed_tokens.weight")
        row = engine.tables["buffers"][number]
        size = int(row["bytes"]) // int(row["rows"])
        spoilt = PROMPT[3] + 1
        begin = int(row["offset"]) + spoilt * size
        before = engine.backend.read(int(row["device"]), "weight", begin, begin + size)
        bits = np.full(1, value, np.float32).view(np.uint8)
        element = bits if size == 4 * int(row["cols"]) else bits[2:]
        engine.backend.write(int(row["device"]), "weight", begin, np.tile(element, int(row["cols"])))
        for params in (REQUESTS["greedy"], REQUESTS["filtered"]):
            with pytest.raises(EngineError, match=f"the logits after position {len(PROMPT)} \\(step .*\\) are not all"):
                engine.generate([*PROMPT, spoilt], params)
        assert engine.stats.launches == 1
        engine.backend.write(int(row["device"]), "weight", begin, before)
        engine.reset()
        out = engine.generate(PROMPT, SamplingParams(3, temperature=1, seed=1, logit_bias={spoilt: 1e4}))
        assert out.tokens == [spoilt] * 3


def test_a_bias_for_an_unknown_id_is_refused(engine: tilecompile.Engine) -> None:
    with pytest.raises(InputError, match="logit_bias has id 300, want ids from 0 to 299"):
        engine.generate(PROMPT, SamplingParams(logit_bias={300: 1.0}))
