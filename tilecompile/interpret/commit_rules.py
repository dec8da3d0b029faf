"""The rules of a request, as the kernels have them: `targets/commit_rules.h` in Python, function by function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilecompile.runtime.format import NEEDS_LOGITS, IdSource, ProgramTable, Reason


@dataclass(frozen=True)
class Step:
    """What the rules and the workers need of a step's record."""

    program: int
    run: int
    position: int
    tokens: int
    flags: int

    @property
    def context(self) -> int:
        """Positions that are valid once the step is done."""
        return self.position + self.tokens


@dataclass(frozen=True)
class Asked:
    """A request: what it asks for, and how far it is (`generated` tokens so far)."""

    position: int
    count: int
    max_new: int
    every_logit: bool
    generated: int = 0
    aborted: bool = False

    @property
    def end(self) -> int:
        """One past the position of the prompt's last id."""
        return self.position + self.count

    def fed(self, context: int) -> int:
        """Ids of the prompt that have been fed once `context` positions are valid."""
        return min(context, self.end) - self.position


@dataclass(frozen=True)
class Limits:
    """What all requests of a launch have in common."""

    programs: ProgramTable
    vocab: int
    max_seq_len: int
    stops: Sequence[int]


@dataclass(frozen=True)
class Next:
    """What follows: a step with ids from `source`, or with a reason the end of the request.

    The request takes `taken` of the sampled ids, from `row` on, as new tokens.
    """

    reason: Reason = Reason.NO_REASON
    program: int = 0
    position: int = 0
    tokens: int = 0
    flags: int = 0
    source: IdSource = IdSource.PROMPT_IDS
    row: int = 0
    taken: int = 0


def first_step(asked: Asked, limits: Limits) -> Next:
    """The step that a request begins with."""
    return _feed_at(asked, limits, limits.programs.first, asked.position)


def decide(step: Step, asked: Asked, limits: Limits, sampled: Sequence[int]) -> Next:
    """What follows a step that chose the id `sampled[row]` after its token `row`."""
    if asked.aborted:
        return Next(Reason.ABORTED)
    program = limits.programs.rows[step.program]
    if step.context < asked.end:
        return _feed_at(asked, limits, int(program["on_prompt"]), step.context)
    if asked.max_new == 0:
        return Next(Reason.MAX_NEW)
    row, taken = step.tokens - 1, 1
    if not 0 <= sampled[row] < limits.vocab:
        return Next(Reason.BAD_ID)
    if sampled[row] in limits.stops:
        return Next(Reason.STOP_ID, row=row, taken=taken)
    if asked.generated + taken >= asked.max_new:
        return Next(Reason.MAX_NEW, row=row, taken=taken)
    if step.context >= limits.max_seq_len:
        return Next(Reason.CONTEXT_FULL, row=row, taken=taken)
    following = int(program["on_token"])
    return _step_at(asked, following, step.context, taken, IdSource.SAMPLED_IDS, row, taken)


def _feed_at(asked: Asked, limits: Limits, program: int, position: int) -> Next:
    """A step that takes as many of the prompt's ids from a position on as its program can."""
    tokens = min(asked.end - position, int(limits.programs.rows["tokens"][program]))
    return _step_at(asked, program, position, tokens, IdSource.PROMPT_IDS)


def _step_at(
    asked: Asked, program: int, position: int, tokens: int, source: IdSource, row: int = 0, taken: int = 0
) -> Next:
    """A step of `tokens` tokens from a position on."""
    last = position + tokens >= asked.end
    flags = NEEDS_LOGITS if asked.every_logit or last else 0
    return Next(Reason.NO_REASON, program, position, tokens, flags, source, row, taken)
