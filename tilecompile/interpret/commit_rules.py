"""The rules of a request, as the kernels have them: `targets/commit_rules.h` in Python, function by function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tilecompile.runtime.format import NEEDS_LOGITS, NONE, NOT_FINITE_ID, NOTHING_ALLOWED_ID, ProgramTable, Reason


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
    """A request: what it asks for, and how far it is (`generated` tokens, `drafted` drafts of the round)."""

    position: int
    count: int
    max_new: int
    every_logit: bool
    drafts: int = 0
    generated: int = 0
    drafted: int = 0
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

    def tokens(self, program: int) -> int:
        """Tokens that one step of a program carries at most."""
        return int(self.programs.rows["tokens"][program])


@dataclass(frozen=True)
class Next:
    """What follows: a step, or with a reason the end of the request.

    The request takes `taken` of the sampled ids, from `row` on, as new tokens; `drafted` are the drafts of the round.
    """

    reason: Reason = Reason.NO_REASON
    program: int = 0
    position: int = 0
    tokens: int = 0
    flags: int = 0
    row: int = 0
    taken: int = 0
    drafted: int = 0


def first_step(asked: Asked, limits: Limits) -> Next:
    """The step that a request begins with."""
    return _feed_at(asked, limits, limits.programs.rows[limits.programs.first], asked.position)


def decide(step: Step, asked: Asked, limits: Limits, sampled: Sequence[int], drafts: Sequence[int] = ()) -> Next:
    """What follows a step that chose the id `sampled[row]` in row `row` of its logits; `drafts` are the round's."""
    if asked.aborted:
        return Next(Reason.ABORTED)
    program = limits.programs.rows[step.program]
    last = asked.end + asked.generated - 1
    if program["drafts"]:
        if step.context < asked.end:
            return _feed_at(asked, limits, program, step.context)
        return _after_draft(step, asked, limits, program)
    speculates = bool(asked.drafts and asked.max_new and program["on_taken"] != NONE)
    if step.context < asked.end:
        if speculates:
            return _step_at(program["on_taken"], step.position, step.tokens, False)
        return _feed_at(asked, limits, program, step.context)
    if asked.max_new == 0:
        return Next(Reason.MAX_NEW)
    first = last - step.position
    row, taken = 0 if program["last_row"] else first, 0
    while True:
        token = sampled[row + taken]
        if not 0 <= token < limits.vocab:
            return Next(_reason_of(token), row=row, taken=taken)
        taken += 1
        if token in limits.stops:
            return Next(Reason.STOP_ID, row=row, taken=taken)
        if asked.generated + taken >= asked.max_new:
            return Next(Reason.MAX_NEW, row=row, taken=taken)
        if last + taken >= limits.max_seq_len:
            return Next(Reason.CONTEXT_FULL, row=row, taken=taken)
        if first + taken >= step.tokens or drafts[taken - 1] != token:
            break
    newest = last + taken
    if speculates and _depth_of(asked, limits, program, asked.generated + taken, newest):
        following = _step_at(program["on_taken"], step.position, first + taken, True)
    else:
        following = _step_at(program["on_token"], newest, 1, True)
    return replace(following, row=row, taken=taken)


def _reason_of(token: int) -> Reason:
    """Why a request ends where something else than an id was sampled."""
    return {NOT_FINITE_ID: Reason.NOT_FINITE, NOTHING_ALLOWED_ID: Reason.NOTHING_ALLOWED}.get(token, Reason.BAD_ID)


def draft_of(limits: Limits, token: int) -> int:
    """The draft that a sampled id is: any id will do where the draft layer's logits are no good."""
    return token if 0 <= token < limits.vocab else 0


def _after_draft(step: Step, asked: Asked, limits: Limits, program: Any) -> Next:
    """What follows a step of an MTP layer, which sampled one more draft."""
    newest, drafted = asked.end + asked.generated - 1, asked.drafted + 1
    if drafted < _depth_of(asked, limits, program, asked.generated, newest):
        following = _step_at(program["on_draft"], step.context, 1, True)
    else:
        following = _step_at(program["on_verify"], newest, 1 + drafted, True)
    return replace(following, drafted=drafted)


def _depth_of(asked: Asked, limits: Limits, program: Any, generated: int, newest: int) -> int:
    """Drafts of a round after `generated` tokens, the last of which is at `newest`."""
    if program["on_verify"] == NONE:
        return 0
    most = limits.tokens(program["on_verify"]) - 1
    return min(most, asked.drafts, asked.max_new - generated - 1, limits.max_seq_len - newest - 1)


def _feed_at(asked: Asked, limits: Limits, program: Any, position: int) -> Next:
    """A step that takes as many of the prompt's ids from a position on as its program, a follower of `program`, can."""
    left = asked.end - position
    following = program["on_single" if left == 1 else "on_every" if asked.every_logit else "on_prompt"]
    tokens = min(left, limits.tokens(following))
    return _step_at(following, position, tokens, asked.every_logit or tokens == left)


def _step_at(program: int, position: int, tokens: int, logits: bool) -> Next:
    """A step of `tokens` tokens from a position on."""
    return Next(program=int(program), position=position, tokens=tokens, flags=NEEDS_LOGITS if logits else 0)
