"""A simulated round of speculation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilecompile.schedules.machine import Machine

if TYPE_CHECKING:
    from tilecompile.measure.simulated.plans import Plan


def speculation(
    plan: Plan, machine: Machine, context: int, threads: int | None, acceptance: float, step_ms: float
) -> dict[str, Any]:
    """A round of speculation: a step of the plan's T tokens, and T - 1 draft steps that propose all but its first.

    Each draft is accepted with probability `acceptance` if those before it were, so a round yields 1 + a + … + a^(T-1)
    tokens (Leviathan, Kalman, Matias 2023). Times in milliseconds. EngineError for a plan without program `draft`.
    """
    tokens = int(plan.manifest.program()["tokens"])
    draft = plan.step(machine, context, threads, "draft").ms if tokens > 1 else 0.0
    round_ms = step_ms + (tokens - 1) * draft
    made = sum(acceptance**i for i in range(tokens))
    return {
        "acceptance": acceptance,
        "tokens": tokens,
        "draft_ms": draft,
        "round_ms": round_ms,
        "tokens_a_round": made,
        "token_ms": round_ms / made,
    }
