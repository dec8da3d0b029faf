"""Rounds: roof, engine and variants measured alternately, so that figures of the same moment are compared.

The bandwidth of a machine that others use too changes by tens of percent within seconds. So a round is short, the roof
is measured before and after the engine's steps, and rounds in which it changed in between are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from tilecompile.measure.roof import ReadKernel, Roof
from tilecompile.measure.steps import time_steps, window
from tilecompile.runtime.engine import Engine
from tilecompile.runtime.kernel import Resident
from tilecompile.runtime.progress import Count

ENGINE = "engine"

ROUND_MS = 100.0
"""Approximate time of the engine's steps in a round."""

FEWEST_STEPS, MOST_STEPS = 4, 128
STEADY = 0.15
"""Change of the roof within a round beyond which the round isn't used."""


@dataclass(frozen=True)
class Round:
    """Figures of one round: the roof in 10⁹ bytes a second, by read kernel, before and after the engine's steps; and
    milliseconds a step by subject."""

    before: Mapping[ReadKernel, float]
    after: Mapping[ReadKernel, float]
    ms: Mapping[str, float]

    def bandwidth(self, kernel: ReadKernel) -> float:
        """A read kernel's bandwidth around the engine's steps: bytes over the time of both measurements."""
        return 2 / (1 / self.before[kernel] + 1 / self.after[kernel])

    @property
    def change(self) -> float:
        """How much the roof changed within the round: 0 for not at all."""
        before, after = max(self.before.values()), max(self.after.values())
        return max(before, after) / min(before, after) - 1


@dataclass(frozen=True)
class Steps:
    """The steps of a round: so many requests, each with steps of these contexts."""

    contexts: range
    requests: int

    def ms(self, engine: Engine, kernel: Resident) -> float:
        """Milliseconds a step: the median over the requests."""
        return median(time_steps(engine, kernel, self.contexts).ms_per_step for _ in range(self.requests))


def steps_around(engine: Engine, kernel: Resident, context: int) -> Steps:
    """The steps of a round: around `context`, about ROUND_MS long. InputError if the engine can't hold the context."""
    limit = engine.manifest.max_seq_len
    first = window(context, 4 * FEWEST_STEPS, limit)
    ms = min(time_steps(engine, kernel, first).ms_per_step for _ in range(3))
    contexts = window(context, max(FEWEST_STEPS, min(MOST_STEPS, round(ROUND_MS / ms))), limit)
    return Steps(contexts, max(1, round(ROUND_MS / ms / len(contexts))))


def run_rounds(
    engine: Engine,
    subjects: Mapping[str, Resident],
    roof: Roof,
    steps: Steps,
    count: int,
    progress: Count,
) -> list[Round]:
    """`count` rounds. `subjects` are the engine's own kernel, by the name ENGINE, and others that come after it."""
    others = {name: kernel for name, kernel in subjects.items() if name != ENGINE}
    for kernel in subjects.values():
        time_steps(engine, kernel, steps.contexts)
    rounds = []
    for i in range(count):
        progress(i, count)
        ms: dict[str, float] = {}
        if i % 2:  # others come before the engine as often as after it
            ms |= {name: steps.ms(engine, kernel) for name, kernel in reversed(others.items())}
        before = roof.measure()
        ms[ENGINE] = steps.ms(engine, subjects[ENGINE])
        after = roof.measure()
        if not i % 2:
            ms |= {name: steps.ms(engine, kernel) for name, kernel in others.items()}
        rounds.append(Round(before, after, {name: ms[name] for name in subjects}))
    return rounds


def steady(rounds: list[Round]) -> list[Round]:
    """The rounds in which the roof stayed the same, at least the better half."""
    limit = max(STEADY, median(r.change for r in rounds))
    return [r for r in rounds if r.change <= limit]


def best_kernel(rounds: list[Round]) -> ReadKernel:
    """The read kernel whose median over the rounds is highest."""
    return max(rounds[0].before, key=lambda kernel: median(r.bandwidth(kernel) for r in rounds))
