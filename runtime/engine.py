"""An engine in use: loaded, launched once, fed with prompts."""

from __future__ import annotations

from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime import scoring, snapshot
from tilecompile.runtime.chat import Messages
from tilecompile.runtime.errors import InputError
from tilecompile.runtime.folder.operators import read_operators
from tilecompile.runtime.generate import Output, TokenStream
from tilecompile.runtime.loaded import LoadedEngine, Prompt
from tilecompile.runtime.replay.buffers import Arrays, check_kept, find_operator, numbers_of, read_buffers, writes
from tilecompile.runtime.replay.selections import Selections
from tilecompile.runtime.run import Ask
from tilecompile.runtime.sampling import GREEDY, SamplingParams, params_of
from tilecompile.runtime.stops import ShownText

if TYPE_CHECKING:
    from tilecompile.runtime.asynchronous import AsyncTokenStream


class Engine(LoadedEngine):
    """A loaded engine, with its kernel resident until `close`. Use it as a context manager. Made by `load`.

    One request runs at a time; a second one, from whatever thread, is refused with EngineBusy, or with `wait=True`
    waits for those before it.

    The caches outlive a request: what a prompt has in common with the ids that they hold, from the first on, isn't
    computed again (`Stats.cached_tokens`). The tokens are the same with and without; `reset` makes the next request
    compute all of it, for measurements.
    """

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | int | None = GREEDY,
        *,
        max_new_tokens: int | EllipsisType | None = ...,
        wait: bool = False,
    ) -> Output:
        """Generates from a text or token ids, until a stop id or text, `max_new_tokens` or a full context.

        `params` say how tokens are chosen; a number or None is their `max_new_tokens`. `Output.tokens` has what ended
        it, a stop id or the tokens of a stop text; `Output.text` has not. An exception (Ctrl-C included) aborts the
        request within one step and leaves the engine usable. While another request runs: EngineBusy, or with `wait`
        this one begins after those that came before it.
        """
        asked = params_of(params, max_new_tokens).resolved(self.manifest)
        if asked.stop:
            return self._streamed(prompt, asked, wait).output()
        ids, text = self._ids(prompt), self.text

        def work() -> Output:
            with self._requests.start(self._requests.reusing(ids, asked)) as run:
                if run.wait(0):
                    run.wait(asked.max_new)
                tokens, stats, logprobs = run.tokens(), run.stats(), run.logprobs()
            shown = tokens[:-1] if tokens and tokens[-1] in asked.stop_token_ids else tokens
            return Output(tokens, text.decode(shown) if text else None, stats, logprobs)

        return self._requests.held(work, wait)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | int | None = GREEDY,
        *,
        max_new_tokens: int | EllipsisType | None = ...,
        wait: bool = False,
    ) -> TokenStream:
        """An iterator over the ids of `generate`, as they come; its `piece` is the text that came with the latest one.

        The request starts with the first `next`, which `wait` is about. Closing or dropping the iterator aborts it
        within one step.
        """
        return self._streamed(prompt, params_of(params, max_new_tokens).resolved(self.manifest), wait)

    def _streamed(self, prompt: Prompt, asked: SamplingParams, wait: bool) -> TokenStream:
        ids = self._ids(prompt)
        if asked.stop and self.text is None:
            raise InputError(f"{self.manifest.folder}: the engine has no tokenizer, so it can't stop at texts")
        text = ShownText(self.text.pieces(), asked) if self.text else None
        return TokenStream(lambda abort: self._requests.begin(ids, asked, abort, wait), text)

    async def agenerate(
        self,
        prompt: Prompt,
        params: SamplingParams | int | None = GREEDY,
        *,
        max_new_tokens: int | EllipsisType | None = ...,
        wait: bool = False,
    ) -> Output:
        """`generate` for asyncio. Cancelling it ends the request within one step."""
        async with self.astream(prompt, params, max_new_tokens=max_new_tokens, wait=wait) as stream:
            return await stream.output()

    def astream(
        self,
        prompt: Prompt,
        params: SamplingParams | int | None = GREEDY,
        *,
        max_new_tokens: int | EllipsisType | None = ...,
        wait: bool = False,
    ) -> AsyncTokenStream:
        """`stream` for asyncio: an iterator for `async for`. Cancelling who waits for it ends the request."""
        from tilecompile.runtime.asynchronous import AsyncTokenStream  # asyncio takes time to load

        stream = self.stream(prompt, params, max_new_tokens=max_new_tokens, wait=wait)
        return AsyncTokenStream(stream)

    def chat(
        self,
        messages: Messages,
        params: SamplingParams | int | None = GREEDY,
        *,
        max_new_tokens: int | EllipsisType | None = ...,
        wait: bool = False,
        **template: Any,
    ) -> Output:
        """The answer to messages, generated as by `generate` from their `chat_prompt`."""
        return self.generate(self.chat_prompt(messages, **template), params, max_new_tokens=max_new_tokens, wait=wait)

    def stream_chat(
        self,
        messages: Messages,
        params: SamplingParams | int | None = GREEDY,
        *,
        max_new_tokens: int | EllipsisType | None = ...,
        wait: bool = False,
        **template: Any,
    ) -> TokenStream:
        """The answer to messages as it comes, as by `stream` from their `chat_prompt`."""
        return self.stream(self.chat_prompt(messages, **template), params, max_new_tokens=max_new_tokens, wait=wait)

    def score(
        self, ids: Prompt, start: int = 0, selections: Selections | None = None, wait: bool = False
    ) -> npt.NDArray[np.float32]:
        """Logits after each id: float32 [len(ids), vocab].

        `start` is the position of the first id. The positions before it keep what the caches hold of earlier requests,
        so that a text can be scored in pieces: InputError if they hold fewer. All of `ids` is computed, whatever the
        caches hold.

        With `selections`, of this or another engine of the model, steps use these positions and experts, whatever this
        engine would choose. That is slow: a kernel of its own takes one id at a time. No later prompt takes over what
        such steps computed.
        """
        checked, requests = self._ids(ids), self._requests
        start = scoring.check_start(checked, start, self.manifest.max_seq_len)
        if selections is not None:
            return requests.held(lambda: scoring.score_with(self, requests, checked, start, selections), wait)
        return requests.held(lambda: scoring.score(requests, checked, start), wait)

    def selections(self, ids: Prompt, start: int = 0) -> Selections:
        """What the engine selects while it is fed as by `score`, as input for `score` of this or another engine."""
        checked = self._ids(ids)
        start = scoring.check_start(checked, start, self.manifest.max_seq_len)
        return self._requests.held(lambda: scoring.select(self, self._requests, checked, start))

    def reset(self) -> None:
        """Makes the next request compute all of its prompt, as on an engine just loaded. EngineBusy if one runs."""
        self._requests.held(self._forget)

    def save_cache(self, path: str | Path) -> int:
        """Writes what the caches hold to a file, for `load_cache`; returns how many positions that is.

        A file that is there is replaced as a whole or not at all. InputError if it can't be written or there is nothing
        to save, EngineBusy if a request runs.
        """
        requests = self._requests
        return requests.held(lambda: snapshot.save(path, self.manifest, self.tables, self.backend, requests.cached))

    def load_cache(self, path: str | Path) -> int:
        """Puts into the caches what `save_cache` of the same engine wrote; returns how many positions that is.

        The same engine is one with the same tables, kernel and weights, however its folder is called. InputError for
        any other file, or one that is damaged; then the caches hold what they did before. EngineBusy if a request runs.
        """

        def work() -> int:
            found = snapshot.Snapshot(path, self.manifest, self.tables, self.backend)
            self._forget()
            found.restore()
            self._requests.cached = found.cached
            return len(found.cached.ids)

        return self._requests.held(work)

    @property
    def cached(self) -> list[int]:
        """The ids that the caches hold, from position 0 on; a request that runs counts what it took over only."""
        cached = self._requests.cached
        return [int(i) for i in cached.ids[: cached.own]]

    def buffers_after(self, ids: Prompt, operator: str | None = None) -> Arrays:
        """Feeds ids and returns copies of the buffers that an operator (OP@LAYER) writes, by tensor.

        The kernel doesn't stop there: the last id's step runs to its end, then the operator's buffers are read. They
        still hold its results if nothing writes to them later in the step, else EngineError. None: all buffers but the
        weights. What a body leaves unwritten is zero or what an earlier step wrote there. All ids are computed, the
        last one by a decode step of its own.
        """
        checked, numbers = self._ids(ids), None
        if operator is not None:
            written = writes(self.manifest, self.tables)
            layers = {o.name: o.layer for o in read_operators(self.manifest) if o.name in written}
            name = find_operator(layers, operator)
            check_kept(self.manifest, self.tables, written, name)
            numbers = numbers_of(written[name])

        def work() -> Arrays:
            if len(checked) > 1:
                with self._requests.start(Ask(checked[:-1])) as run:
                    run.wait(0)
            with self._requests.start(Ask(checked, len(checked) - 1)) as run:
                run.wait(0)
                return read_buffers(self.manifest, self.tables, numbers, self.backend.read)

        return self._requests.held(work)
