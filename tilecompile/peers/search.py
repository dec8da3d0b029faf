"""The fastest setting of a peer, found by trying: one dimension after the other, from a good guess."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import GlmMoeDsaForCausalLM

from tilecompile.models.checkpoint import Weights
from tilecompile.peers.decode import Decoder, Setting
from tilecompile.peers.model import DTYPES, build

Note = Callable[[str], None]

EXPERTS = ("batched_mm", "grouped_mm", "eager")
ATTENTION = ("eager", "sdpa")
CACHES = ("static", "dynamic")

COMPILE_OPTIONS: tuple[dict[str, Any], ...] = (
    {"cpp_wrapper": True},
    {"freezing": True},
    {"freezing": True, "cpp_wrapper": True},
    {"mode": "max-autotune-no-cudagraphs"},
)
"""What is tried of torch.compile beside its defaults. Without CUDA graphs `reduce-overhead` is one of those."""


@dataclass
class Tried:
    """A setting, its quick time in ms a step or why it failed, and what it took to become warm."""

    setting: Setting
    ms: float | None = None
    warm_up_seconds: float = 0.0
    failed: str | None = None

    def shown(self) -> dict[str, Any]:
        """As JSON values."""
        found = {"failed": self.failed} if self.ms is None else {"ms_per_step": round(self.ms, 4)}
        return {**self.setting.shown(), **found}


@dataclass
class Search:
    """The trials of one peer. `budget` is the time in seconds after which nothing new is tried."""

    weights: Weights
    stored: str
    contexts: range
    note: Note
    budget: float
    tried: list[Tried] = field(default_factory=list)
    load_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._begin = time.perf_counter()
        self._model: GlmMoeDsaForCausalLM | None = None
        self._dtype = ""

    def model(self, dtype: str) -> GlmMoeDsaForCausalLM:
        """The model in a dtype; the one in another dtype is given up first."""
        if self._model is None or self._dtype != dtype:
            self._model = None
            gc.collect()
            self.note(f"loading the weights as {dtype}")
            begin = time.perf_counter()
            self._model, self._dtype = build(self.weights, DTYPES[self.stored], DTYPES[dtype]), dtype
            self.load_seconds = self.load_seconds or time.perf_counter() - begin
        return self._model

    def dtypes(self) -> list[str]:
        """The engine's weight dtype, and f32."""
        return list(dict.fromkeys((self.stored, "f32")))

    @contextmanager
    def decoder(self, setting: Setting) -> Iterator[tuple[Decoder, float]]:
        """A warm decoder, and the seconds that it took to become so."""
        model = self.model(setting.dtype)
        torch._dynamo.reset()
        gc.collect()
        begin = time.perf_counter()
        decoder = Decoder(model, setting, self.contexts)
        decoder.warm_up()
        yield decoder, time.perf_counter() - begin

    def trial(self, setting: Setting) -> Tried:
        """Tries a setting, unless it was tried before or the budget is spent."""
        known = next((t for t in self.tried if t.setting == setting), None)
        if known is not None:
            return known
        tried = Tried(setting)
        self.tried.append(tried)
        if time.perf_counter() - self._begin > self.budget:
            tried.failed = f"not tried: {self.budget:.0f} s were over"
            return tried
        self.note(f"trying {setting}")
        try:
            with self.decoder(setting) as (decoder, seconds):
                tried.warm_up_seconds, tried.ms = seconds, decoder.trial()
        except Exception as error:
            tried.failed = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return tried

    def fastest(self, settings: list[Setting]) -> Setting:
        """The fastest of some settings, by trial; the first of them if none runs."""
        for setting in settings:
            self.trial(setting)
        done = [t for t in self.tried if t.setting in settings and t.ms is not None]
        return min(done, key=lambda t: t.ms or 0.0).setting if done else settings[0]

    def eager(self) -> Setting:
        """The fastest setting that isn't compiled: in each dtype experts, then attention, then the cache."""
        best = []
        for dtype in self.dtypes():
            found = self.fastest([Setting(dtype, experts=e) for e in EXPERTS])
            found = self.fastest([replace(found, attention=a) for a in ATTENTION])
            best.append(self.fastest([replace(found, cache=c) for c in CACHES]))
        return self.fastest(best)

    def compiled(self) -> Setting:
        """The fastest compiled setting: attention in each dtype, then options. Caches are static, experts batched_mm.

        grouped_mm's products are no code of the compiler's, and the eager loop over experts depends on data.
        """
        best = []
        for dtype in self.dtypes():
            best.append(self.fastest([Setting(dtype, attention=a, options={}) for a in ATTENTION]))
        found = self.fastest(best)
        return self.fastest([found, *(replace(found, options=o) for o in COMPILE_OPTIONS)])
