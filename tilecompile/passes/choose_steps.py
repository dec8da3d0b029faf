"""choose_steps: how many tokens a round of speculation drafts at most, and how many of a prompt a step takes.

Both are what an estimate of the machine's time says, from a few layers of the model (`cost/step_estimate.py`), with the
acceptance that was published for GLM-5.2. On a machine without costs nothing is estimated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tilecompile.cost.rounds import PUBLISHED, Round, rounds
from tilecompile.cost.step_estimate import step_estimate
from tilecompile.errors import InputError
from tilecompile.models.registry import spec_of
from tilecompile.models.spec import ModelConfig, Steps, Storage
from tilecompile.passes.dag import depths
from tilecompile.passes.fuse import fuse
from tilecompile.passes.place.choose import coarser, sample
from tilecompile.passes.place.place import place
from tilecompile.passes.place.split_over_workers import split_over_workers
from tilecompile.passes.tile import tile
from tilecompile.passes.trace import trace_program
from tilecompile.runtime.format import BODY_TOKENS, MAX_DRAFTS, MAX_TOKENS
from tilecompile.schedules.auto import Choice
from tilecompile.schedules.machine import Machine

ENOUGH = 0.9
"""The part of the best rate that a step's tokens of a prompt must reach. Of those that do, the fewest are taken: an
abort waits for a step's end, and buffers grow with its tokens."""

Times = Callable[[str, int], float]
"""Milliseconds of a step, by program and tokens."""


@dataclass(frozen=True)
class ChosenSteps:
    """The sizes of steps, and what was estimated for them at a context: rounds by their drafts (none where drafts were
    given), tokens of a prompt a second by the tokens of a step (none where those were given)."""

    steps: Steps
    context: int
    rounds: tuple[Round, ...]
    prompts: Mapping[int, float]

    @property
    def stated(self) -> dict[str, Any]:
        """The choice as engine.json states it."""
        return {
            "context": self.context,
            "acceptance": PUBLISHED.name,
            "token_ms": [one.token_ms for one in self.rounds],
            "prompt_tokens_s": {str(size): rate for size, rate in self.prompts.items()},
        }

    @property
    def summary(self) -> str:
        """The choice and its reason in a line."""
        parts = []
        if self.rounds:
            times = ", ".join(f"{one.drafts}: {one.token_ms:.3g}" for one in self.rounds)
            parts.append(f"drafts are {self.steps.drafts} (ms a token by drafts: {times}; {PUBLISHED.name})")
        if self.prompts:
            rates = ", ".join(f"{size}: {rate:.3g}" for size, rate in self.prompts.items())
            parts.append(f"a step takes {self.steps.prefill} tokens of a prompt (tokens/s by those: {rates})")
        return f"{'; '.join(parts)}; estimated at context {self.context}"

    def __str__(self) -> str:
        return f"{self.summary}\n"


def choose_steps(
    config: ModelConfig,
    storage: Storage,
    machine: Machine,
    devices: int,
    workers: int,
    recipe: str | Choice,
    context: int,
    drafts: int | None = None,
    prefill: int | None = None,
) -> ChosenSteps:
    """The sizes of a model's steps; `drafts` and `prefill` are those that are given, None for a choice.

    InputError for a machine without costs, where the recipe can't use the devices, and where no drafts pay that a head
    is asked for.
    """
    most = MAX_DRAFTS if drafts is None and spec_of(config).drafts(config) else 0
    ms = times(config, storage, machine, devices, workers, recipe, context, most)
    found = rounds(most, PUBLISHED, ms) if most else []
    if most:
        drafts = best_drafts(found, machine.is_cpu)
        if storage.draft_head and not drafts:
            raise InputError(
                f"--draft-head is {storage.draft_head}, and by estimated time no drafts pay on machine {machine.name}; "
                "give --drafts"
            )
    rates = {}
    if prefill is None:
        rates = {size: 1e3 * size / ms("verify", size) for size in sizes(MAX_TOKENS if machine.is_cpu else BODY_TOKENS)}
        prefill = best_prefill(rates)
    return ChosenSteps(Steps(prefill, drafts or 0), context, tuple(found), rates)


def best_drafts(found: list[Round], adapts: bool) -> int:
    """The drafts of the fastest round, the fewest of equally fast ones.

    Where none is faster than a step without drafts, 1 if the engine `adapts`: it measures whether they pay, and other
    texts may be easier to draft. One that doesn't would always draft, so it gets none.
    """
    best = min(found, key=lambda one: (one.token_ms, one.drafts)).drafts
    return best or int(adapts)


def best_prefill(rates: Mapping[int, float]) -> int:
    """The smallest step that reads prompts at ENOUGH of the best rate."""
    return min(size for size, rate in rates.items() if rate >= ENOUGH * max(rates.values()))


def sizes(most: int) -> list[int]:
    """Tokens of a prompt that a step may take: powers of two."""
    return [1 << i for i in range(1, most.bit_length()) if 1 << i <= most]


def times(
    config: ModelConfig,
    storage: Storage,
    machine: Machine,
    devices: int,
    workers: int,
    recipe: str | Choice,
    context: int,
    most: int,
) -> Times:
    """The time of a model's steps, estimated from a few of its layers; `most` is the number of drafts that may be asked
    for. `verify` stands for a step of the main model with any number of tokens, `draft` for one of the MTP layer."""
    layers = sample(config.layers)
    kinds, short = Counter(config.layers), Counter(config.layers[i] for i in layers)
    each = [kinds[config.layers[i]] / short[config.layers[i]] for i in layers]
    figures = config.figures
    chosen = figures.experts_per_token / figures.experts if figures.experts else 0.0
    few, steps = config.with_layers(layers), Steps(1, max(most, 1))

    def copies(layer: int | None) -> float:
        return 1.0 if layer is None or layer >= len(each) else each[layer]

    coarse, workers = coarser(machine, workers)
    estimates = {}
    for program in spec_of(few).programs(few, steps):
        if program.name in (("verify", "extend") if most else ("decode",)):
            graph = fuse(trace_program(program, few, storage, steps))
            placed = split_over_workers(place(graph, recipe, devices), workers)
            tiled = tile(placed, workers, machine.layout)
            estimates[program.name] = step_estimate(
                tiled, coarse, workers, context, depths(placed.graph), copies, chosen
            )
    model = {"decode": "verify", "draft": "extend"} if most else {"verify": "decode"}
    return lambda program, tokens: estimates[model.get(program, program)].ms(tokens)
