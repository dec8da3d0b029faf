"""The fastest setting of a peer, found by trying: one dimension after the other, from a good guess."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from tilecompile.errors import InputError
from tilecompile.measure.peers.decode import Decoder, Setting
from tilecompile.measure.peers.model import DTYPES, build
from tilecompile.models.weights import Weights

Note = Callable[[str], None]

EXPERTS = ("batched_mm", "grouped_mm", "eager")
ATTENTION = ("eager", "sdpa")
CACHES = ("static", "dynamic")

COMPILE_OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "cpu": ({"cpp_wrapper": True}, {"freezing": True}, {"mode": "max-autotune-no-cudagraphs"}),
    "cuda": ({"mode": "reduce-overhead"}, {"mode": "max-autotune"}, {"mode": "max-autotune-no-cudagraphs"}),
}
"""What is tried of torch.compile beside its defaults. Without CUDA graphs `reduce-overhead` is one of those."""


FINALISTS = 3
"""The number of settings that are measured alternately."""

ROUND_MS = 1500.0
"""The longest time of a round, in milliseconds."""


def forget() -> None:
    """Drops compiled code, which would otherwise count as more versions of one function."""
    torch._dynamo.reset()
    gc.collect()


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


@dataclass(frozen=True)
class Measured:
    """A setting's time: median over rounds and all rounds, in ms a step, and the steps of a round."""

    tried: Tried
    ms: float
    rounds: list[float]
    steps: int


@dataclass
class Search:
    """The trials of one peer on a device. `budget` is the time in seconds after which nothing new is tried."""

    weights: Weights[Any]
    stored: str
    contexts: range
    note: Note
    budget: float
    device: str = "cpu"
    tried: list[Tried] = field(default_factory=list)
    load_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._begin = time.perf_counter()
        self._models: dict[str, PreTrainedModel] = {}

    def model(self, dtype: str) -> PreTrainedModel:
        """The model in a dtype; each is loaded once and kept."""
        if dtype not in self._models:
            self.note(f"loading the weights as {dtype}")
            begin = time.perf_counter()
            self._models[dtype] = build(self.weights, DTYPES[self.stored], DTYPES[dtype], self.device)
            self.load_seconds = self.load_seconds or time.perf_counter() - begin
        return self._models[dtype]

    def dtypes(self) -> list[str]:
        """The engine's weight dtype, and f32; on a GPU bf16."""
        if self.device == "cuda":
            return ["bf16"]
        return list(dict.fromkeys((self.stored, "f32")))

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
            model = self.model(setting.dtype)
            forget()
            begin = time.perf_counter()
            decoder = Decoder(model, setting, self.contexts)
            decoder.warm_up()
            tried.warm_up_seconds, tried.ms = time.perf_counter() - begin, decoder.trial()
        except Exception as error:
            tried.failed = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return tried

    def measured(self, rounds: int, steps: int) -> Measured:
        """The fastest of the three settings that were fastest when tried, measured alternately, in rounds.

        Times drift with the machine, so a quick trial finds the fast settings but can't rank them. A round has
        up to `steps` steps, fewer where they are slow. InputError if no setting runs.
        """
        order = sorted((t for t in self.tried if t.ms is not None), key=lambda t: t.ms or 0.0)
        if not order:
            raise InputError(f"no setting runs; {self.tried[0].setting}: {self.tried[0].failed}")
        steps = max(1, min(steps, len(self.contexts), round(ROUND_MS / (order[0].ms or 1.0))))
        forget()
        times: dict[int, list[float]] = {}
        decoders = []
        for index, tried in enumerate(order[:FINALISTS]):
            self.note(f"measuring {tried.setting}")
            decoder = Decoder(self.model(tried.setting.dtype), tried.setting, self.contexts)
            decoder.warm_up()
            decoders.append(decoder)
            times[index] = []
        for _ in range(rounds):
            for index, decoder in enumerate(decoders):
                times[index].append(decoder.round(steps))
        best = min(times, key=lambda index: statistics.median(times[index]))
        return Measured(order[best], statistics.median(times[best]), times[best], steps)

    def fastest(self, settings: list[Setting]) -> Setting:
        """The fastest of some settings, by trial; the first of them if none runs."""
        for setting in settings:
            self.trial(setting)
        done = [t for t in self.tried if t.setting in settings and t.ms is not None]
        return min(done, key=lambda t: t.ms or 0.0).setting if done else settings[0]

    def eager(self) -> None:
        """Tries settings that aren't compiled: in each dtype experts, then attention, then the cache."""
        for dtype in self.dtypes():
            found = self.fastest([Setting(dtype, experts=e) for e in EXPERTS])
            found = self.fastest([replace(found, attention=a) for a in ATTENTION])
            self.fastest([replace(found, cache=c) for c in CACHES])

    def compiled(self) -> None:
        """Tries compiled settings: experts, attention, dtype, then each option and all that helped together.

        Caches are static, and the loop over experts is left out: it depends on data.
        """
        found = self.fastest([Setting(self.dtypes()[0], experts=e, options={}) for e in EXPERTS if e != "eager"])
        found = self.fastest([replace(found, attention=a) for a in ATTENTION])
        found = self.fastest([replace(found, dtype=dtype) for dtype in self.dtypes()])
        base = self.trial(found)
        helped: dict[str, Any] = {}
        for option in COMPILE_OPTIONS[self.device]:
            tried = self.trial(replace(found, options=option))
            if tried.ms is not None and base.ms is not None and tried.ms < base.ms and "mode" not in option:
                helped |= option
        if helped:
            self.trial(replace(found, options=helped))

    def captured(self) -> None:
        """Tries steps captured as CUDA graphs: experts, then attention.

        Caches are static, and the loop over experts is left out: what is captured can't depend on data.
        """
        settings = [Setting(d, experts=e, graph=True) for d in self.dtypes() for e in EXPERTS if e != "eager"]
        self.fastest([replace(self.fastest(settings), attention=a) for a in ATTENTION])
