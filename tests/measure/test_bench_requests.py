"""bench of whole requests: prompts by length, drafts accepted as often as asked, on drawn weights and texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import tilecompile
from support.bench import answer, refused, run, shorten_requests
from support.engines import Built
from tilecompile.errors import EngineError
from tilecompile.measure import roof
from tilecompile.measure.bench import prefill, rounds
from tilecompile.measure.bench.speculation import ACCEPTANCE, AUTO, Case, pinned
from tilecompile.measure.steps import fill_caches, kernel_for_steps, time_request
from tilecompile.runtime.format import MAX_DRAFTS
from tilecompile.runtime.kernel import Resident
from tilecompile.runtime.run import Ask


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short measurements."""
    monkeypatch.setattr(roof, "SECONDS", 5e-4)
    monkeypatch.setattr(rounds, "ROUND_MS", 3.0)
    shorten_requests(monkeypatch)


@pytest.fixture
def kernel(engine: tilecompile.Engine) -> Iterator[Resident]:
    """A kernel over full caches, for measured requests."""
    fill_caches(engine)
    with kernel_for_steps(engine) as kernel:
        yield kernel


def test_a_script_is_right_as_often_as_asked() -> None:
    tokens = list(range(100, 300))
    for rate in (0.0, 0.3, 0.5, 0.8, 1.0):
        script = pinned(tokens, rate, 1000)
        assert script.shape == (200 + MAX_DRAFTS,)
        right = script[:200] == tokens
        assert abs(right.sum() - 200 * rate) <= 1
        for begin in range(0, 200, 40):
            assert abs(right[begin : begin + 40].sum() - 40 * rate) <= 1
    orders = {tuple(pinned(tokens, 0.5, 1000)[i : i + 20] == tokens[i : i + 20]) for i in range(0, 200, 20)}
    assert len(orders) > 5
    assert pinned([999], 0.0, 1000)[0] == 0


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_pinned_drafts_are_accepted_at_their_rate(engine: tilecompile.Engine, kernel: Resident, rate: float) -> None:
    case = Case(None, rate, [(np.full(200, 7, np.int32), 199)], 160)
    case.prepare(engine, kernel)
    for depth in (1, 3):
        (made,) = case.run(engine, kernel, depth)
        assert len(made.stats.acceptance) == depth
        first = made.stats.acceptance[0]
        assert first == rate if rate in (0, 1) else abs(first - rate) < 0.15
        rounds = sum(rate**i for i in range(depth + 1))
        assert made.stats.accepted_length == pytest.approx(rounds, rel=0.2)
        assert made.ms_per_token > 0


def test_drafts_that_change_the_text_are_an_error(engine: tilecompile.Engine, kernel: Resident) -> None:
    case = Case(None, 0.5, [(np.full(50, 7, np.int32), 49)], 20)
    case.prepare(engine, kernel)
    case.plain[0][10] += 1
    with pytest.raises(EngineError, match="with drafts the tokens are others than without"):
        case.run(engine, kernel, 2)


def test_a_prompt_is_read_in_chunks_from_an_empty_cache(engine: tilecompile.Engine, kernel: Resident) -> None:
    chunk = prefill.chunk(engine)
    assert chunk == engine.manifest.program("prefill")["tokens"] == 32
    ids = prefill.prompt_of(engine, 3 * chunk + 5)
    assert (ids == prefill.prompt_of(engine, len(ids))).all()
    assert len(set(ids.tolist())) > 50
    made = time_request(engine, kernel, Ask(ids, 0, 1))
    assert (made.stats.steps, made.stats.cached_tokens, made.stats.tokens) == (4, 0, 1)
    assert made.ms_per_token == made.stats.total_ms >= made.stats.time_to_first_token_ms > 0


def test_prompts_fit_the_engine() -> None:
    assert prefill.lengths(4096) == list(prefill.LENGTHS)
    assert prefill.lengths(1001) == [128, 1000]
    assert prefill.lengths(1000) == [128]
    assert prefill.lengths(64) == [63]


def test_prompts_that_would_take_too_long_are_left_out(
    engine: tilecompile.Engine, kernel: Resident, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = prefill.measure_prefill(engine, kernel, 0.5, lambda *_: None)
    assert [one["prompt_tokens"] for one in both["first_token"]] == [40, 70]
    last = both["first_token"][-1]
    assert both["tokens_per_second"] == 70e3 / last["ms"]
    assert both["times_decode"] == pytest.approx(35 / last["ms"])
    monkeypatch.setattr(prefill, "MOST_SECONDS", 0.0)
    assert prefill.measure_prefill(engine, kernel, 0.5, lambda *_: None)["prompt_tokens"] == 40


def test_drawn_weights_have_a_case_for_each_rate(tiny: Path, quick: None) -> None:
    args = (tiny, "--threads", 1, "--rounds", 1, "--context", 40)
    found = answer(*args)
    made = found["speculation"]
    assert (made["drafts"], made["tokens"]) == (3, 24)
    assert [(case["text"], case["acceptance"]) for case in made["cases"]] == [(None, rate) for rate in ACCEPTANCE]
    for case in made["cases"]:
        rows = {row["drafts"]: row for row in case["depths"]}
        assert list(rows) == [0, 1, 2, 3, AUTO]
        assert (rows[0]["times_none"], rows[0]["accepted"]) == (1, [])
        assert [len(rows[d]["accepted"]) for d in (1, 2, 3)] == [1, 2, 3]
        assert rows[case["best"]]["ms_per_token"] == min(rows[d]["ms_per_token"] for d in range(4))
        assert all(row["tokens_per_second"] == pytest.approx(1e3 / row["ms_per_token"]) for row in rows.values())
    few, many = made["cases"][0]["depths"][3], made["cases"][-1]["depths"][3]
    assert few["accepted_length"] < many["accepted_length"]


def test_a_text_is_continued_with_the_models_own_drafts(tiny: Path, quick: None, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("the quick brown fox jumps over the lazy dog " * 4)
    args = (tiny, "--threads", 1, "--rounds", 1, "--context", 40, "--no-prefill", "--text", text)
    found = answer(*args)
    assert found["prefill"] is None
    (case,) = found["speculation"]["cases"]
    assert (case["text"], case["acceptance"]) == (str(text), None)
    both = answer(*args, "--acceptance", "0.25")["speculation"]["cases"]
    assert [case["acceptance"] for case in both] == [None, 0.25]
    shown = run(*args).stdout
    assert "accepted length" in shown
    text.write_text(" \n")
    assert "has no text" in refused(tiny, "--text", text)


def test_parts_are_left_out(tiny: Path, quick: None) -> None:
    result = run(tiny, "--threads", 1, "--rounds", 1, "--context", 40, "--no-prefill", "--no-speculation", "--json")
    found = json.loads(result.stdout)
    assert (found["prefill"], found["speculation"]) == (None, None)
    assert "speculation" not in result.stderr


def test_an_engine_without_an_mtp_layer_has_no_speculation(built: Callable[[str], Built], quick: None) -> None:
    engine = built("plain").path
    found = answer(engine, "--threads", 1, "--rounds", 1, "--context", 40)
    assert found["speculation"] is None
    assert found["prefill"]["prompt_tokens"] == 70
    assert "--acceptance is for speculation, and" in refused(engine, "--acceptance", "0.5")
