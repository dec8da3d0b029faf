"""Simulated rounds of speculation, by the number of drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilecompile.errors import InputError
from tilecompile.runtime.format import MAX_DRAFTS
from tilecompile.schedules.machine import Machine

if TYPE_CHECKING:
    from tilecompile.measure.simulated.plans import Plan


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


def speculation(
    plan: Plan, machine: Machine, context: int, threads: int | None, curve: Curve, step_ms: float
) -> dict[str, Any] | None:
    """Rounds of a plan on a machine, beside a decode step of `step_ms`; None for a plan that doesn't draft.

    A round of d drafts is a step of `verify` with d + 1 tokens, one of `extend` with the tokens that it gives on
    average (rounded), and d - 1 of `draft`. `depths` has them for 0 (a decode step) to the plan's most, with the times
    of the steps, `round_ms`, `tokens_a_round`, `token_ms`, their quotient, and `gain`, how many times as fast as
    without drafts that is; `best` is the d of the greatest. Times are in milliseconds. InputError for a rate of
    acceptance of a plan that doesn't draft.
    """
    most = plan.manifest.programs.drafts
    if not most:
        if curve.acceptance is None:
            return None
        model = plan.manifest.data["model"]["name"]
        raise InputError(f"--acceptance is {curve.acceptance:g}, and {model} drafts no tokens")

    def ms(program: str, tokens: int) -> float:
        return plan.step(machine, context, threads, program, tokens).ms

    def row(drafts: int, made: float, verify: float, extend: float, round_ms: float) -> dict[str, Any]:
        return {
            "drafts": drafts,
            "tokens_a_round": made,
            "verify_ms": verify,
            "extend_ms": extend,
            "round_ms": round_ms,
            "token_ms": round_ms / made,
            "gain": step_ms * made / round_ms,
        }

    depths = [row(0, 1.0, 0.0, 0.0, step_ms)]
    draft = ms("draft", 1)
    for d in range(1, most + 1):
        made = curve.lengths[d - 1]
        verify, extend = ms("verify", d + 1), ms("extend", round(made))
        depths.append(row(d, made, verify, extend, verify + extend + (d - 1) * draft))
    return {
        "curve": curve.name,
        "acceptance": curve.acceptance,
        "draft_ms": draft,
        "best": max(depths, key=lambda one: one["gain"])["drafts"],
        "depths": depths,
    }
