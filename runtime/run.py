"""One request on a launched kernel: what is asked for, and its run from the first step to the last."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.cached import Ids
from tilecompile.runtime.cpu.memory import address
from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.format import REQUEST, Reason, State
from tilecompile.runtime.kernel import REASONS, Resident
from tilecompile.runtime.sampler import Logprobs, Sampler

POLL_MS = 50
"""Longest time of one wait in the kernel, so that Ctrl-C is noticed."""

UNLIMITED = 0xFFFFFFFF

ACTIVE = (State.RUNNING, State.PAUSED)
"""States of a kernel that has a request."""

FAULTS = {
    Reason.BAD_ID: "the kernel chose an id outside the vocabulary {}; compile the model again",
    Reason.NOT_FINITE: "the logits {} are not all finite numbers",
    Reason.NOTHING_ALLOWED: "no id is allowed {}: the mask and min_tokens forbid all",
}
"""Reasons for which a request ends with an error; what comes in the gap says where."""


@dataclass(frozen=True)
class Stats:
    """Figures of one request.

    `finish` says why it ended: "stop" (a stop id), "length" (max_new_tokens), "context" (max_seq_len reached) or
    "aborted". `cached_tokens` are those of the prompt that were in the caches already, `steps` counts the steps, those
    of the rest of the prompt included, and `program_steps` those of each step program by number. `accepted_length` is
    the number of tokens that a round of speculation gave on average, 0 without one, and `acceptance` by depth the
    fraction of the drafts that were accepted; a draft behind a rejected one counts as rejected. `ms_per_step` is the
    time from the first generated token to the end over the steps in between; of a request with one token, the time to
    it over all steps. A request with the same `seed` gets the same noise, also where the seed was drawn for this one.
    """

    prompt_tokens: int
    cached_tokens: int
    tokens: int
    steps: int
    program_steps: tuple[int, ...]
    accepted_length: float
    acceptance: tuple[float, ...]
    finish: str
    time_to_first_token_ms: float
    ms_per_step: float
    total_ms: float
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Ask:
    """What a request asks for.

    ids: those of all positions from 0 on. The first `position` are in the caches; the others, at least one, are
    computed. max_new: tokens to generate at most. logits: where those of the computed ids go, f32 [n, vocab], or None.
    drafts: tokens that a round of speculation drafts at most, or AUTO_DRAFTS. script: for measurements, ids i32
    [max_new + MAX_DRAFTS] that take the place of drafts: number i that of token i, whatever the model drafts.
    sampler: the parameters for sampling; None: greedily, with the engine's stop ids.
    """

    ids: Ids
    position: int = 0
    max_new: int = 0
    logits: npt.NDArray[np.float32] | None = None
    drafts: int = 0
    sampler: Sampler | None = None
    script: Ids | None = None


class Aborted(Exception):
    """A request was aborted before it began."""


class Abort:
    """Ends a request from any thread: within one step, or before it begins."""

    def __init__(self) -> None:
        self._guard = threading.RLock()  # a stream may be collected as garbage meanwhile, in the same thread
        self._kernel: Resident | None = None
        self.asked = False

    def __call__(self) -> None:
        """Ends the request, if it hasn't ended. Doesn't wait for that."""
        with self._guard:
            self.asked = True
            if self._kernel is not None and not self._kernel.closed:
                self._kernel.abort()

    def check(self) -> None:
        """Aborted if the request is to end."""
        if self.asked:
            raise Aborted

    def attach(self, kernel: Resident | None) -> None:
        """States the kernel that runs the request from now on; None once it has ended."""
        with self._guard:
            self._kernel = kernel
            if self.asked and kernel is not None:
                kernel.abort()


class Run:
    """A running request, with its times. Its `with` block ends it.

    The kernel must be idle. `stalled(kernel)` makes the error for a stalled kernel; `ended` is called at the end.
    """

    def __init__(
        self,
        kernel: Resident,
        stalled: Callable[[Resident], EngineError],
        ask: Ask,
        abort: Abort | None = None,
        ended: Callable[[Run], None] = lambda run: None,
    ) -> None:
        self._kernel, self._stalled, self._ended = kernel, stalled, ended
        self._abort = abort or Abort()
        self.ask = ask
        self._new = ask.ids[ask.position :]
        request = np.zeros(1, REQUEST.dtype)
        request["ids"], request["count"] = address(self._new), len(self._new)
        request["position"], request["max_new"] = ask.position, ask.max_new
        request["drafts"] = ask.drafts
        request["script"] = 0 if ask.script is None else address(ask.script)
        request["logits"] = 0 if ask.logits is None else address(ask.logits)
        if ask.sampler is not None:
            ask.sampler.state(request)
        self._first_steps, self._begin = kernel.field("steps"), time.perf_counter()
        self._first = self._last = self._begin
        self._first_at = 0
        self._final: Stats | None = None
        if kernel.submit(request, ask.logits, ask.sampler):
            raise EngineError("the kernel takes no request: another one runs, or it has stalled")
        self._abort.attach(kernel)

    def _poll(self, generated: int) -> bool:
        """Waits up to POLL_MS; returns whether there are more than `generated` tokens or the request has ended.

        After a stall, the tokens that came before it are reported first; then it is raised.
        """
        state = self._kernel.wait(generated, POLL_MS)
        more = self._kernel.field("generated") > generated
        if state == State.STALLED and not more:
            raise self._stalled(self._kernel)
        if not more and (reason := Reason(self._kernel.field("reason"))) in FAULTS:
            last = len(self.ask.ids) + self._kernel.field("generated") - 1
            raise EngineError(FAULTS[reason].format(f"after position {last} (step {self._steps()} of the request)"))
        if state == State.PAUSED and self.ask.sampler is not None:
            self._kernel.allow(self.ask.sampler.mask(self.tokens()))
        return more or state not in ACTIVE

    def wait(self, generated: int) -> int:
        """Waits until there are more than `generated` tokens or the request has ended; returns how many there are."""
        while not self._poll(generated):
            pass
        self._last = time.perf_counter()
        count = self._kernel.field("generated")
        if count and self._first == self._begin:
            self._first, self._first_at = self._last, self._kernel.field("steps")
        return count

    def logprobs(self) -> list[Logprobs] | None:
        """Those of the generated ids that have been waited for; None if they weren't asked for."""
        sampler = self.ask.sampler
        if sampler is None or sampler.logprobs is None:
            return None
        return [one for i in range(self._kernel.field("generated")) if (one := sampler.logprobs_of(i))]

    def logprobs_of(self, token: int) -> Logprobs | None:
        """Those of one of them."""
        return None if self.ask.sampler is None else self.ask.sampler.logprobs_of(token)

    def tokens(self, begin: int = 0) -> list[int]:
        """Generated ids that have been waited for, from the given one on."""
        return self._kernel.tokens(begin, max(begin, self._kernel.field("generated")))

    def computed(self) -> list[int] | None:
        """The ids whose positions are in the caches by now, from `ask.position` on; None if they can't be relied on.

        Of the generated ones that is all but the last, which no step has taken yet, or whose step was aborted.
        """
        if self._kernel.closed or self._kernel.field("state") == State.STALLED:
            return None
        if self._kernel.field("reason") in FAULTS:
            return []
        return [*self._new[: self._kernel.field("fed")].tolist(), *self.tokens()[:-1]]

    def finish(self) -> None:
        """Ends the request, at the next step if it still runs, and waits for that."""
        try:
            if self._kernel.closed:
                return
            settle(self._kernel)
            self._kernel.release()
        finally:
            self._abort.attach(None)
            self._final = self.stats()  # the kernel's figures are soon those of another request
            self._ended(self)

    def stats(self) -> Stats:
        """Figures of the request up to now, or to its end."""
        if self._final is not None:
            return self._final
        steps = self._steps()
        tokens = self._kernel.field("generated")
        first, total = 1e3 * (self._first - self._begin), 1e3 * (self._last - self._begin)
        later = self._kernel.field("steps") - self._first_at if tokens else 0
        each = (total - first) / later if later else total / max(1, steps)
        finish = REASONS[Reason(self._kernel.field("reason"))]
        first_ms = first if tokens else 0.0
        return Stats(
            len(self.ask.ids),
            self.ask.position,
            tokens,
            steps,
            *self._speculation(),
            finish,
            first_ms,
            each,
            total,
            0 if self.ask.sampler is None else self.ask.sampler.seed,
        )

    def _steps(self) -> int:
        return self._kernel.field("steps") - self._first_steps

    def _speculation(self) -> tuple[tuple[int, ...], float, tuple[float, ...]]:
        """Steps by program, tokens that a round gave on average, and by depth the drafts that were accepted."""
        steps, proposed, accepted = (self._kernel.fields(n).tolist() for n in ("program_steps", "proposed", "accepted"))
        rounds = proposed[0]
        length = 1 + sum(accepted) / rounds if rounds else 0.0
        return tuple(steps), length, tuple(a / p for a, p in zip(accepted, proposed, strict=True) if p)

    def extended(self) -> int | None:
        """The positions that the MTP layer's caches hold; None if the request didn't draft."""
        return self._kernel.field("extended") if self.ask.drafts else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()


def settle(kernel: Resident) -> None:
    """Aborts the request that runs, if any, and waits for its end."""
    if kernel.wait(0, 0) in ACTIVE:
        kernel.abort()
        while kernel.wait(UNLIMITED, POLL_MS) in ACTIVE:
            pass
