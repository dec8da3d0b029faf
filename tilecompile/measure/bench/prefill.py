"""Prompts read from an empty cache: time to the first token by the prompt's length, and the rate that follows."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

import numpy as np

from tilecompile.measure.bench.report import spread
from tilecompile.measure.steps import time_request
from tilecompile.runtime.cached import Ids
from tilecompile.runtime.engine import Engine
from tilecompile.runtime.kernel import Resident
from tilecompile.runtime.progress import Count
from tilecompile.runtime.run import Ask

LENGTHS = (128, 1000, 2048)
"""Tokens of the prompts, as far as the engine has positions."""

RUNS = 7
"""Times that each prompt is read at most."""

SECONDS = 4.0
"""Time after which a prompt isn't read again."""

MOST_SECONDS = 60.0
"""A prompt is left out that would take longer, judged by the one before it."""


def prompt_of(engine: Engine, length: int) -> Ids:
    """Drawn ids i32 [length], always the same: what a prompt says doesn't matter for its time, but its experts do."""
    return np.random.default_rng(length).integers(0, engine.manifest.vocab_size, length, np.int32)


def lengths(max_seq_len: int) -> list[int]:
    """LENGTHS of an engine: those that leave room for a token, or else the longest prompt that does."""
    return [n for n in LENGTHS if n < max_seq_len] or [max(1, max_seq_len - 1)]


def first_token_ms(engine: Engine, kernel: Resident, length: int) -> float:
    """Milliseconds from a request with a prompt of `length` tokens, none of them cached, to its first token."""
    return time_request(engine, kernel, Ask(prompt_of(engine, length), 0, 1)).stats.time_to_first_token_ms


def measure_prefill(engine: Engine, kernel: Resident, step_ms: float, progress: Count) -> dict[str, Any]:
    """Measures prompts of growing length, without drafts.

    Returns `first_token`, for each prompt its `prompt_tokens`, the median `ms` to the first token, their `spread` and
    the number of `runs`; and of the longest of them `prompt_tokens`, `tokens_per_second`, and `times_decode`: how often
    more tokens that are than steps of `step_ms` in the same time. `chunk` counts the tokens that one step takes.
    """
    found: list[dict[str, Any]] = []
    todo = lengths(engine.manifest.max_seq_len)
    for i, length in enumerate(todo):
        progress(i, len(todo))
        if found and found[-1]["ms"] * length / found[-1]["prompt_tokens"] > 1e3 * MOST_SECONDS:
            break
        once = partial(first_token_ms, engine, kernel, length)
        ms = [once()]
        if ms[0] < 1e3 * SECONDS:  # the first run finds caches and cores cold
            ms = [once()]
        while len(ms) < RUNS and sum(ms) + ms[-1] < 1e3 * SECONDS:
            ms.append(once())
        found.append({"prompt_tokens": length, "ms": median(ms), "spread": spread(ms), "runs": len(ms)})
    rate = 1e3 * found[-1]["prompt_tokens"] / found[-1]["ms"]
    return {
        "prompt_tokens": found[-1]["prompt_tokens"],
        "tokens_per_second": rate,
        "times_decode": rate * step_ms / 1e3,
        "chunk": chunk(engine),
        "first_token": found,
    }


def chunk(engine: Engine) -> int:
    """Tokens of a prompt that one step takes."""
    table = engine.manifest.programs
    return int(table.rows["tokens"][int(table.rows["on_prompt"][table.first])])
