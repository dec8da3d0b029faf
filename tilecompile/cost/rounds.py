"""Rounds of speculation: what one gives and what one costs, by its number of drafts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilecompile.runtime.format import MAX_DRAFTS


@dataclass(frozen=True)
class Curve:
    """Tokens that a round gives on average, by its number of drafts from 1 on: the drafts that are accepted and the one
    that the verifying step samples after them. `name` says whose they are, `acceptance` is a constant rate or None."""

    name: str
    lengths: Sequence[float]
    acceptance: float | None = None


PUBLISHED = Curve(
    "accepted as published for GLM-5.2 (coding, temperature 1)", (1.84, 2.50, 2.99, 3.33, 3.61, 3.78, 3.91, 4.06)
)
"""Accepted length by depth 1 to 8, from the model's publication. It grows more slowly than at any constant rate."""


def constant(acceptance: float) -> Curve:
    """Drafts that are accepted at one rate if those before them were: a round of d drafts gives 1 + a + … + a^d tokens
    (Leviathan, Kalman, Matias 2023)."""
    lengths = [sum(acceptance**i for i in range(d + 1)) for d in range(1, MAX_DRAFTS + 1)]
    return Curve(f"accepted at {acceptance:g}", lengths, acceptance)


@dataclass(frozen=True)
class Round:
    """A round of `drafts` drafts: the tokens that it gives on average, its steps of `verify` and `extend`, and all of
    it; times in milliseconds. Without drafts it is a decode step."""

    drafts: int
    tokens: float
    verify_ms: float
    extend_ms: float
    ms: float

    @property
    def token_ms(self) -> float:
        """Milliseconds a token."""
        return self.ms / self.tokens


def rounds(most: int, curve: Curve, ms: Callable[[str, int], float]) -> list[Round]:
    """Rounds of 0 to `most` drafts, by `ms(program, tokens)`, the time of a step.

    One of d drafts is a step of `verify` with d + 1 tokens, one of `extend` with the tokens that it gives on average
    (rounded), and d - 1 of `draft`.
    """
    found = [Round(0, 1.0, 0.0, 0.0, ms("decode", 1))]
    draft = ms("draft", 1) if most else 0.0
    for d in range(1, most + 1):
        made = curve.lengths[d - 1]
        verify, extend = ms("verify", d + 1), ms("extend", round(made))
        found.append(Round(d, made, verify, extend, verify + extend + (d - 1) * draft))
    return found
