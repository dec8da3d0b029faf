"""Prompts read by transformers' model from an empty cache, not compiled: the fastest setting of each dtype."""

from __future__ import annotations

import gc
import itertools
import time
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from tilecompile.measure.peers.decode import Setting
from tilecompile.measure.peers.search import ATTENTION, Search

EXPERTS = ("grouped_mm", "eager")
"""What is tried for the experts. `batched_mm` copies the weights of its experts for every token."""

RUNS = 3
"""Times that each setting reads the prompt, of which the fastest counts."""

SECONDS = 20.0
"""Time after which a setting doesn't read it again."""


def read_prompts(search: Search, tokens: int) -> list[dict[str, Any]]:
    """For each of the search's dtypes the time to read `tokens` drawn ids; see `peers.bench`.

    A setting that fails is left out, and a dtype of which all do.
    """
    found = []
    for dtype in search.dtypes():
        tried = []
        for experts, attention in itertools.product(EXPERTS, ATTENTION):
            setting = Setting(dtype, experts=experts, attention=attention, cache="dynamic")
            search.note(f"reading {tokens} tokens: {setting}")
            try:
                tried.append((_fastest(search.model(dtype), setting, tokens, search.device), setting))
            except Exception as error:
                search.note(f"{setting} fails: {error}".splitlines()[0])
            gc.collect()
        if tried:
            ms, best = min(tried, key=lambda one: one[0])
            rate = 1e3 * tokens / ms
            found.append(
                {
                    "dtype": dtype,
                    "prompt_tokens": tokens,
                    "ms": ms,
                    "tokens_per_second": rate,
                    "settings": best.shown(),
                }
            )
    return found


def _fastest(model: PreTrainedModel, setting: Setting, tokens: int, device: str) -> float:
    """Milliseconds to read the prompt with a setting: the best of some runs."""
    model.set_experts_implementation(setting.experts)
    model.set_attn_implementation(setting.attention)
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, tokens), generator=random).to(device)
    times: list[float] = []
    while len(times) < RUNS and sum(times) < SECONDS:
        begin = time.perf_counter()
        cache = DynamicCache(config=model.config)
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        int(logits[0, -1].argmax())  # waits for the device
        times.append(time.perf_counter() - begin)
    return 1e3 * min(times)
