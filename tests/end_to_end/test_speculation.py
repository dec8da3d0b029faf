"""Step programs in requests: drafts and chunks never change the text, a second turn goes on where the first ended."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tilecompile
from support.engines import Built
from support.held_out import held_out
from support.paths import TINY_CHECKPOINT
from tilecompile import SamplingParams
from tilecompile.compile import compile_model
from tilecompile.errors import InputError
from tilecompile.interpret.interpreter import Interpreter
from tilecompile.options import CompileOptions

DEPTHS: tuple[int | str, ...] = (1, 2, 3, "auto")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of the trained checkpoint, whose drafts are often right; steps take 7 tokens of a prompt."""
    folder = tmp_path_factory.mktemp("trained") / "engine"
    compile_model(CompileOptions(str(TINY_CHECKPOINT), folder, workers=2, max_seq_len=512, prefill=7))
    return folder


@pytest.fixture(scope="module", params=[1, 2])
def loaded(trained: Path, request: pytest.FixtureRequest) -> Iterator[tilecompile.Engine]:
    """It, loaded with one thread and with two."""
    with tilecompile.load(trained, threads=request.param) as engine:
        yield engine


def greedy(drafts: int | str, count: int) -> SamplingParams:
    return SamplingParams(count, temperature=0, drafts=drafts)


@pytest.mark.parametrize("prompt", held_out(3, 90))
def test_drafts_never_change_the_text(loaded: tilecompile.Engine, prompt: str) -> None:
    loaded.reset()
    want = loaded.generate(prompt, greedy(0, 100))
    for depth in DEPTHS:
        loaded.reset()
        got = loaded.generate(prompt, greedy(depth, 100))
        assert got.tokens == want.tokens, f"drafts {depth}"
        assert got.stats.tokens == 100


def test_rounds_take_fewer_steps_of_the_model(loaded: tilecompile.Engine) -> None:
    """Counted: with three drafts a round gives more than two tokens on this text."""
    (prompt,) = held_out(1, 200)
    loaded.reset()
    stats = loaded.generate(prompt, greedy(3, 120)).stats
    names = [str(p["name"]) for p in loaded.manifest.data["programs"]]
    steps = dict(zip(names, stats.program_steps, strict=False))
    assert steps["verify"] + steps["decode"] < 60 < steps["draft"]
    assert stats.accepted_length > 2
    assert 1 > stats.acceptance[0] > stats.acceptance[2] > 0
    assert sum(stats.program_steps) == stats.steps


def test_chunks_of_a_prompt_are_what_tokens_one_by_one_are(loaded: tilecompile.Engine) -> None:
    """Programs of 1, 4 and 7 tokens give the same logits, bit for bit, in full steps and in others."""
    (prompt,) = held_out(1, 260)
    assert loaded.text is not None
    ids = loaded.text.encode(prompt)[:60]
    together = loaded.score(ids)
    one_by_one = np.concatenate([loaded.score([token], start=i) for i, token in enumerate(ids)])
    assert np.array_equal(together, one_by_one)
    for count in (1, 2, 6, 7, 8, 13, 14, 15, 36):
        loaded.reset()
        assert loaded.generate(ids[:count], greedy(0, 1)).tokens == [int(together[count - 1].argmax())]


def test_a_second_turn_goes_on_with_the_caches_of_the_mtp_layer(loaded: tilecompile.Engine) -> None:
    """It computes the new tokens alone, and its drafts are accepted as in a fresh run."""
    first, second = held_out(2, 120)
    loaded.reset()
    answer = loaded.generate(first, greedy(3, 50))
    assert loaded.text is not None
    ids = [*loaded.text.encode(first), *answer.tokens, *loaded.text.encode(second)]
    turn = loaded.generate(ids, greedy(3, 60))
    assert turn.stats.cached_tokens >= len(loaded.text.encode(first)) + 50 - 1 - 4
    loaded.reset()
    fresh = loaded.generate(ids, greedy(3, 60))
    assert (turn.tokens, turn.stats.acceptance) == (fresh.tokens, fresh.stats.acceptance)
    assert fresh.stats.cached_tokens == 0


def test_drafts_after_a_request_without_compute_what_the_mtp_layer_lacks(loaded: tilecompile.Engine) -> None:
    (prompt,) = held_out(1, 150)
    loaded.reset()
    want = loaded.generate(prompt, greedy(0, 20)).tokens
    drafted = loaded.generate(prompt, greedy(3, 20))
    assert drafted.tokens == want
    assert drafted.stats.cached_tokens == 0
    again = loaded.generate(prompt, greedy(3, 20))
    assert again.stats.cached_tokens == again.stats.prompt_tokens - 1 or again.stats.cached_tokens > 0
    assert again.tokens == want


def test_a_request_ends_within_a_round(loaded: tilecompile.Engine) -> None:
    """At any number of tokens, at a stop id among accepted drafts, and where the context is full."""
    (prompt,) = held_out(1, 150)
    loaded.reset()
    want = loaded.generate(prompt, greedy(0, 40)).tokens
    for count in range(1, 12):
        assert loaded.generate(prompt, greedy(3, count)).tokens == want[:count]
    for stop in sorted(set(want[:20])):
        got = loaded.generate(prompt, SamplingParams(40, temperature=0, drafts=3, stop_token_ids=(stop,)))
        assert got.tokens == want[: want.index(stop) + 1]
        assert got.stats.finish == "stop"
    full = loaded.generate(prompt, SamplingParams(None, temperature=0, drafts=3))
    plain = loaded.generate(prompt, SamplingParams(None, temperature=0, drafts=0))
    assert full.tokens == plain.tokens
    assert full.stats.finish == plain.stats.finish == "context"


def test_more_drafts_than_the_engine_has_are_refused(loaded: tilecompile.Engine) -> None:
    with pytest.raises(InputError, match=r"drafts is 4, and .* drafts 3 at most"):
        loaded.generate([1], SamplingParams(drafts=4))


def test_the_interpreter_drafts_as_the_kernel_does(trained: Path) -> None:
    """In a random legal order, with fresh counters and memory full of NaN."""
    with tilecompile.load(trained) as engine:
        assert engine.text is not None
        ids = engine.text.encode(held_out(1, 60)[0])[:12]
        want = engine.generate(ids, greedy(3, 9))
        interpreter = Interpreter(trained, 5)
        assert interpreter.generate(ids, 9, drafts=3) == want.tokens
        assert tuple(interpreter.program_steps) == want.stats.program_steps[: len(interpreter.program_steps)]


@pytest.mark.parametrize("name", ["tiny", "two_devices"])
def test_drawn_engines_draft_too(name: str, request: pytest.FixtureRequest) -> None:
    """Whose drafts are hardly ever right; one of two devices."""
    with tilecompile.load(request.getfixturevalue(name)) as engine:
        rng = random.Random(1)
        for count in (1, 2, 30):
            ids = [rng.randrange(engine.manifest.vocab_size) for _ in range(count)]
            tokens = []
            for depth in (0, *DEPTHS):
                engine.reset()
                tokens.append(engine.generate(ids, SamplingParams(25, drafts=depth, ignore_eos=True)).tokens)
            assert all(one == tokens[0] for one in tokens)


def test_an_engine_without_an_mtp_layer_reads_prompts_in_chunks(built: Callable[[str], Built]) -> None:
    """Contexts go beyond index_topk; some layers share the selection of others."""
    engine = built("shared")
    with tilecompile.load(engine.path) as loaded:
        assert [p["name"] for p in loaded.manifest.data["programs"]] == ["decode", "prefill"]
        logits = loaded.score(engine.ids)
        for count in (5, 33, len(engine.ids)):
            loaded.reset()
            got = loaded.generate(engine.ids[:count], 1)
            assert got.tokens == [int(logits[count - 1].argmax())]
            assert got.stats.steps == -(-count // 32)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7}, {"temperature": 1.0, "top_p": 0.95}], ids=str)
@pytest.mark.parametrize("penalties", [{}, {"repetition_penalty": 1.1, "frequency_penalty": 0.2}], ids=str)
def test_many_texts_are_the_same_at_every_depth(
    trained: Path, sampling: dict[str, float], penalties: dict[str, float]
) -> None:
    """200 held-out prompts, 128 tokens each, at every depth, in chunks of 7, and every fifth on two threads too."""
    given = SamplingParams(128, ignore_eos=True, **{"temperature": 0.0, **sampling, **penalties})  # type: ignore[arg-type]
    wanted: list[list[int]] = []
    for threads in (1, 2):
        with tilecompile.load(trained, threads=threads) as engine:
            for number, prompt in enumerate(held_out(200, 60)):
                if threads == 2 and number % 5:
                    continue
                for depth in (0, *DEPTHS):
                    engine.reset()
                    params = replace(given, drafts=depth, seed=number)
                    tokens = engine.generate(prompt, params).tokens
                    if len(wanted) <= number:
                        wanted.append(tokens)
                    assert tokens == wanted[number], f"prompt {number}, drafts {depth}, {threads} threads"
