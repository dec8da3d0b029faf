"""Simulated rounds of speculation, by the number of drafts."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from tilecompile.cost.rounds import Curve, rounds
from tilecompile.errors import InputError
from tilecompile.schedules.machine import Machine

if TYPE_CHECKING:
    from tilecompile.measure.simulated.plans import Plan


def speculation(
    plan: Plan, machine: Machine, context: int, threads: int | None, curve: Curve, step_ms: float
) -> dict[str, Any] | None:
    """Rounds of a plan on a machine, beside a decode step of `step_ms`; None for a plan that doesn't draft.

    `depths` has them (see `rounds`) for 0 (a decode step) to the plan's most, with the times of the steps, `round_ms`,
    `tokens_a_round`, `token_ms`, their quotient, and `gain`, how many times as fast as without drafts that is; `best`
    is the number of drafts with the greatest. Times are in milliseconds. InputError for a rate of acceptance of a plan
    that doesn't draft.
    """
    most = plan.manifest.programs.drafts
    if not most:
        if curve.acceptance is None:
            return None
        model = plan.manifest.data["model"]["name"]
        raise InputError(f"--acceptance is {curve.acceptance:g}, and {model} drafts no tokens")

    @cache
    def ms(program: str, tokens: int) -> float:
        return step_ms if program == "decode" else plan.step(machine, context, threads, program, tokens).ms

    depths = rounds(most, curve, ms)
    return {
        "curve": curve.name,
        "acceptance": curve.acceptance,
        "draft_ms": ms("draft", 1),
        "best": max(depths, key=lambda one: step_ms / one.token_ms).drafts,
        "depths": [
            {
                "drafts": one.drafts,
                "tokens_a_round": one.tokens,
                "verify_ms": one.verify_ms,
                "extend_ms": one.extend_ms,
                "round_ms": one.ms,
                "token_ms": one.token_ms,
                "gain": step_ms / one.token_ms,
            }
            for one in depths
        ],
    }
