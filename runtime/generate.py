"""One request on a launched kernel: the prompt is fed, tokens come back, and it can be aborted between two steps."""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.claims import Claim
from tilecompile.runtime.cpu.memory import address
from tilecompile.runtime.errors import EngineError, InputError
from tilecompile.runtime.format import REQUEST, Reason, State
from tilecompile.runtime.kernel import REASONS, Resident
from tilecompile.runtime.text import Pieces

POLL_MS = 50
"""Longest time of one wait in the kernel, so that Ctrl-C is noticed."""

UNLIMITED = 0xFFFFFFFF


@dataclass(frozen=True)
class Stats:
    """Figures of one request.

    `finish` says why it ended: "stop" (a stop id), "length" (max_new_tokens), "context" (max_seq_len reached) or
    "aborted". `steps` counts the decode steps, those of the prompt included. `ms_per_step` is the time from the first
    generated token to the end over the steps in between; of a request with one token, the time to it over all steps.
    """

    prompt_tokens: int
    tokens: int
    steps: int
    finish: str
    time_to_first_token_ms: float
    ms_per_step: float
    total_ms: float


@dataclass(frozen=True)
class Output:
    """What `Engine.generate` returns.

    `tokens` are the generated ids, with the stop id if one ended the generation. `text` is their text without that
    stop id and without special tokens; None in an engine without tokenizer.
    """

    tokens: list[int]
    text: str | None
    stats: Stats


def check_ids(prompt: Iterable[Any], vocab: int, max_seq_len: int) -> npt.NDArray[np.int32]:
    """Token ids as the kernel takes them. InputError that names the id and its position, or both lengths."""
    ids = []
    try:
        items = list(prompt)
    except TypeError as error:
        raise InputError(f"prompt is a {type(prompt).__name__}, want text or a sequence of token ids") from error
    for position, item in enumerate(items):
        try:
            value = operator.index(item)
        except TypeError as error:
            raise InputError(f"prompt id at position {position} is {item!r}, want a whole number") from error
        if not 0 <= value < vocab:
            raise InputError(
                f"prompt id {value} at position {position} is outside the vocabulary, want 0 to {vocab - 1}"
            )
        ids.append(value)
    if not ids:
        raise InputError("the prompt is empty, want at least one token")
    if len(ids) > max_seq_len:
        raise InputError(f"the prompt has {len(ids)} tokens, the engine's max_seq_len is {max_seq_len}")
    return np.array(ids, np.int32)


class Run:
    """A running request from a position on, with its times. Its `with` block ends it.

    `stalled(kernel)` makes the error for a stalled kernel; `ended` is called with the request's figures at its end.
    """

    def __init__(
        self,
        kernel: Resident,
        stalled: Callable[[Resident], EngineError],
        ids: npt.NDArray[np.int32],
        max_new: int,
        logits: npt.NDArray[np.float32] | None = None,
        position: int = 0,
        ended: Callable[[Stats], None] = lambda stats: None,
    ) -> None:
        self._kernel, self._stalled, self._ended = kernel, stalled, ended
        self.prompt_tokens = len(ids)
        request = np.zeros(1, REQUEST.dtype)
        request["ids"], request["count"], request["max_new"] = address(ids), len(ids), max_new
        request["position"] = position
        request["logits"] = 0 if logits is None else address(logits)
        self._first_steps, self._begin = kernel.field("steps"), time.perf_counter()
        self._first = self._last = self._begin
        self._first_at = 0
        while kernel.submit(request, logits):  # an earlier request runs, whose end was interrupted
            kernel.abort()
            self._poll(UNLIMITED)

    def _poll(self, generated: int) -> bool:
        """Waits up to POLL_MS; returns whether there are more than `generated` tokens or the request has ended.

        After a stall, the tokens that came before it are reported first; then it is raised.
        """
        state = self._kernel.wait(generated, POLL_MS)
        more = self._kernel.field("generated") > generated
        if state == State.STALLED and not more:
            raise self._stalled(self._kernel)
        if self._kernel.field("reason") == Reason.BAD_ID and not more:
            raise EngineError("the kernel chose an id outside the vocabulary; compile the model again")
        return more or state != State.RUNNING

    def wait(self, generated: int) -> int:
        """Waits until there are more than `generated` tokens or the request has ended; returns how many there are."""
        while not self._poll(generated):
            pass
        self._last = time.perf_counter()
        count = self._kernel.field("generated")
        if count and self._first == self._begin:
            self._first, self._first_at = self._last, self._kernel.field("steps")
        return count

    def tokens(self, begin: int = 0) -> list[int]:
        """Generated ids that have been waited for, from the given one on."""
        return self._kernel.tokens(begin, max(begin, self._kernel.field("generated")))

    def finish(self) -> None:
        """Ends the request, at the next step if it still runs, and waits for that."""
        try:
            if self._kernel.closed:
                return
            if self._kernel.wait(0, 0) == State.RUNNING:
                self._kernel.abort()
                while self._kernel.wait(UNLIMITED, POLL_MS) == State.RUNNING:
                    pass
            self._kernel.release()
        finally:
            self._ended(self.stats())

    def stats(self) -> Stats:
        """Figures of the request up to now."""
        steps = self._kernel.field("steps") - self._first_steps
        tokens = self._kernel.field("generated")
        first, total = 1e3 * (self._first - self._begin), 1e3 * (self._last - self._begin)
        later = self._kernel.field("steps") - self._first_at if tokens else 0
        each = (total - first) / later if later else total / max(1, steps)
        finish = REASONS[Reason(self._kernel.field("reason"))]
        return Stats(self.prompt_tokens, tokens, steps, finish, first if tokens else 0.0, each, total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()


class TokenStream(Iterator[int]):
    """Iterator over generated ids; the request starts with the first `next`.

    `piece` is the text that became complete with the latest token (often empty), and at the end what was held back;
    joined over the stream it is `Output.text`. Closing it, leaving its `with` block or dropping it ends the request
    within one step and frees the engine for the next one.

    `start` starts the request for a locked claim; `pieces` puts text together, if the engine has a tokenizer, and
    leaves out the ids in `stops`.
    """

    def __init__(self, start: Callable[[threading.Lock], Run], pieces: Pieces | None, stops: frozenset[int]) -> None:
        self._start, self._pieces, self._stops = start, pieces, stops
        self._held: tuple[Run, threading.Lock] | None = None  # the claim is lost with the stream
        self._closed = False
        self._ready: list[int] = []
        self._count = 0
        self.piece = ""
        self.stats: Stats | None = None
        """Figures of the request, once it has ended."""

    def __next__(self) -> int:
        self.piece = ""
        if self._closed:
            raise StopIteration
        try:
            if self._held is None:
                self._held = self._begin()
            run, _ = self._held
            if not self._ready:
                run.wait(self._count)
                self._ready = run.tokens(self._count)[::-1]
            if not self._ready:
                self.close()
                self.piece = self._pieces.finish() if self._pieces else ""
                raise StopIteration
            token = self._ready.pop()
            self._count += 1
            if self._pieces and token not in self._stops:
                self.piece = self._pieces.push(token)
        except StopIteration:
            raise
        except BaseException:
            self.close()
            raise
        return token

    def _begin(self) -> tuple[Run, threading.Lock]:
        """Starts the request; the claim outlives this call if the request does."""
        claim = Claim()
        claim.acquire()
        try:
            return self._start(claim), claim
        except BaseException:
            claim.release()
            raise

    def close(self) -> None:
        """Ends the request, within one step if it still runs."""
        held, self._held, self._closed = self._held, None, True
        if held is not None:
            run, claim = held
            try:
                run.finish()
                self.stats = run.stats()
            finally:
                claim.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_held"):  # an interrupt may have come while it was made
            self.close()
