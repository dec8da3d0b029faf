"""A simulated round of speculation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilecompile.errors import InputError
from tilecompile.schedules.machine import Machine

if TYPE_CHECKING:
    from tilecompile.measure.simulated.plans import Plan


def speculation(
    plan: Plan, machine: Machine, context: int, threads: int | None, acceptance: float, step_ms: float
) -> dict[str, Any]:
    """A round of speculation of a plan that drafts K tokens: verification of 1 + K, an extension, and K - 1 drafts.

    Each draft is accepted with probability `acceptance` if those before it were, so a round yields 1 + a + … + a^K
    tokens (Leviathan, Kalman, Matias 2023, arXiv 2211.17192). `step_ms` is the time of a step without drafts. Times in
    milliseconds. InputError for a plan that drafts none.
    """
    drafts = plan.manifest.programs.drafts
    if not drafts:
        raise InputError(f"--acceptance is {acceptance:g}, and {plan.manifest.data['model']['name']} drafts no tokens")
    verify, extend, draft = (plan.step(machine, context, threads, name).ms for name in ("verify", "extend", "draft"))
    round_ms = verify + extend + (drafts - 1) * draft
    made = sum(acceptance**i for i in range(1 + drafts))
    return {
        "acceptance": acceptance,
        "drafts": drafts,
        "verify_ms": verify,
        "extend_ms": extend,
        "draft_ms": draft,
        "round_ms": round_ms,
        "tokens_a_round": made,
        "token_ms": round_ms / made,
        "gain": step_ms * made / round_ms,
    }
