"""What a generation takes and gives: checked prompts, outputs, and the stream of tokens."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.errors import EngineError, InputError
from tilecompile.runtime.requests import Begin, Held
from tilecompile.runtime.run import Abort, Aborted, Stats
from tilecompile.runtime.sampler import Logprobs
from tilecompile.runtime.stops import ShownText


@dataclass(frozen=True)
class Output:
    """What `Engine.generate` returns.

    `tokens` are the generated ids, with the stop id if one ended the generation. `text` is their text without that
    stop id and without special tokens; None in an engine without tokenizer. `logprobs` are those of each token, if the
    request asked for them.
    """

    tokens: list[int]
    text: str | None
    stats: Stats
    logprobs: list[Logprobs] | None = None


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


class TokenStream(Iterator[int]):
    """Iterator over generated ids; the request starts with the first `next`.

    `piece` is the text that became complete with the latest token (often empty), and at the end what was held back;
    joined over the stream it is `Output.text`. Closing it, leaving its `with` block or dropping it ends the request
    within one step and frees the engine for the next one.

    `begin` begins the request; `text` is what is shown of its tokens, if the engine has a tokenizer. `abort` may be
    called from any thread: the iteration then ends within one step.
    """

    def __init__(self, begin: Begin, text: ShownText | None) -> None:
        self._begin, self._text = begin, text
        self._held: Held | None = None  # the claim is lost with the stream
        self._closed = False
        self._ready: list[int] = []
        self._count = 0
        self.abort = Abort()
        self.piece = ""
        self.stats: Stats | None = None
        """Figures of the request, once it has ended."""
        self.logprobs: Logprobs | None = None
        """Those of the latest token, if the request asked for them."""

    def __next__(self) -> int:
        self.piece = ""
        if self._closed:
            raise StopIteration
        try:
            if self._held is None:
                self._held = self._begin(self.abort)
            run = self._held.run
            if not self._ready:
                run.wait(self._count)
                self._ready = run.tokens(self._count)[::-1]
            if not self._ready:
                self.close()
                self.piece = self._text.finish() if self._text else ""
                raise StopIteration
            token = self._ready.pop()
            self.logprobs = run.logprobs_of(self._count)
            self._count += 1
            if self._text:
                self.piece = self._text.push(token)
                if self._text.matched is not None:
                    self.close()
        except StopIteration:
            raise
        except Aborted:
            self.close()
            raise StopIteration from None
        except BaseException:
            self.close()
            raise
        return token

    def close(self) -> None:
        """Ends the request, within one step if it still runs."""
        held, self._held, self._closed = self._held, None, True
        if held is not None:
            try:
                held.close()
            finally:
                self.stats = held.run.stats()
                if self._text and self._text.matched is not None:  # the kernel may have gone on meanwhile
                    self.stats = replace(self.stats, tokens=self._count, finish="stop")

    def output(self) -> Output:
        """All of it, as `Engine.generate` returns it."""
        tokens: list[int] = []
        said: list[str] = []
        logprobs: list[Logprobs] = []
        with self:
            for token in self:
                tokens.append(token)
                said.append(self.piece)
                logprobs += [self.logprobs] if self.logprobs else []
            said.append(self.piece)
        if self.stats is None:
            raise EngineError("the stream was closed before it began")
        return Output(tokens, "".join(said) if self._text else None, self.stats, logprobs or None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_held"):  # an interrupt may have come while it was made
            self.close()
