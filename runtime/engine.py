"""An engine in use: loaded, launched once, fed with prompts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import EllipsisType, TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tilecompile.runtime import scoring
from tilecompile.runtime.backend import Backend
from tilecompile.runtime.cached import Cached
from tilecompile.runtime.chat import CHAT, ChatTemplates, Messages
from tilecompile.runtime.cpu.backend import CpuBackend
from tilecompile.runtime.errors import EngineError, InputError
from tilecompile.runtime.folder.files import read_bytes
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.folder.operators import read_operators
from tilecompile.runtime.folder.tables import Tables
from tilecompile.runtime.format import ARENAS
from tilecompile.runtime.generate import Output, TokenStream, check_ids
from tilecompile.runtime.kernel import Resident
from tilecompile.runtime.replay.buffers import Arrays, check_kept, find_operator, numbers_of, read_buffers, writes
from tilecompile.runtime.replay.selections import Selections
from tilecompile.runtime.requests import Requests
from tilecompile.runtime.run import Ask
from tilecompile.runtime.sampling import GREEDY, SamplingParams, params_of
from tilecompile.runtime.text import Text

Prompt = str | Iterable[int]


@dataclass(frozen=True)
class EngineStats:
    """Counts over the engine's life. `launches` is 1 unless the kernel stalled and was launched again.

    Of the `prompt_tokens` of all requests, `cached_tokens` were in the caches already.
    """

    launches: int
    steps: int
    requests: int
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    threads: int
    load_ms: float


class Engine:
    """A loaded engine, with its kernel resident until `close`. Use it as a context manager. Made by `load`.

    One request runs at a time; a second one, from whatever thread, is refused with EngineBusy, or with `wait=True`
    waits for those before it.

    The caches outlive a request: what a prompt has in common with the ids that they hold, from the first on, isn't
    computed again (`Stats.cached_tokens`). The tokens are the same with and without; `reset` makes the next request
    compute all of it, for measurements.
    """

    def __init__(self, manifest: Manifest, tables: Tables, backend: Backend, begin: float) -> None:
        self.manifest, self.tables, self.backend = manifest, tables, backend
        self._stops = frozenset(manifest.eos_token_ids)
        self._text: Text | None = None
        try:
            # Parsing waits until text is needed; the folder may have been replaced by then.
            self._tokenizer = read_bytes(manifest.tokenizer) if manifest.tokenizer else None
            self._chat = read_bytes(manifest.file(CHAT)) if CHAT in manifest.data["files"] else None
            self._requests = Requests(manifest, tables, backend)
        except BaseException:
            backend.close()
            raise
        self._load_ms = 1e3 * (time.perf_counter() - begin)

    @property
    def threads(self) -> int:
        """Host threads that run the kernel; 0 on GPUs."""
        return self.backend.threads

    @property
    def cpu(self) -> CpuBackend:
        """The kernel's library and memory. EngineError if the engine is for GPUs."""
        if not isinstance(self.backend, CpuBackend):
            raise EngineError(f"{self.manifest.folder}: the engine is for GPUs, and this is for CPU engines")
        return self.backend

    @property
    def text(self) -> Text | None:
        """The engine's tokenizer, or None."""
        if self._text is None and self.manifest.tokenizer and self._tokenizer is not None:
            self._text = Text(self.manifest.tokenizer, self._tokenizer)
            self._tokenizer = None
        return self._text

    @cached_property
    def templates(self) -> ChatTemplates:
        """The model's chat templates. InputError in an engine without any."""
        if self._chat is None:
            raise InputError(f"{self.manifest.folder}: the engine has no chat template; give a prompt instead")
        return ChatTemplates(self.manifest.file(CHAT), self._chat)

    def chat_prompt(self, messages: Messages, **template: Any) -> list[int]:
        """The ids of messages, each with `role` and `content`, in the model's chat template, up to the answer's begin.

        `template` are arguments of `ChatTemplates.render`: tools, documents, variables of the template. The template
        writes all special tokens itself. InputError for what can't be rendered.
        """
        shown = self.templates.render(messages, **template)
        if self.text is None:
            raise InputError(f"{self.manifest.folder}: the engine has no tokenizer; give token ids instead of text")
        return self.text.encode(shown, special=False)

    @property
    def stats(self) -> EngineStats:
        """Counts over the engine's life, up to the last token that the host has seen."""
        done = self._requests
        return EngineStats(
            done.launches.launches,
            done.launches.steps,
            done.requests,
            done.prompt_tokens,
            done.cached_tokens,
            done.tokens,
            self.threads,
            self._load_ms,
        )

    def _ids(self, prompt: Prompt) -> npt.NDArray[np.int32]:
        if isinstance(prompt, (bytes, bytearray)):
            raise InputError("prompt is bytes, want text or a sequence of token ids")
        if isinstance(prompt, str):
            if self.text is None:
                raise InputError(f"{self.manifest.folder}: the engine has no tokenizer; give token ids instead of text")
            prompt = self.text.encode(prompt) if prompt else []
        return check_ids(prompt, self.manifest.vocab_size, self.manifest.max_seq_len)

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | int | None = GREEDY,
        *,
        max_new_tokens: int | EllipsisType | None = ...,
        wait: bool = False,
    ) -> Output:
        """Generates from a text or token ids, until a stop id, `max_new_tokens` or a full context.

        `params` say how tokens are chosen; a number or None is their `max_new_tokens`. The stop id is in
        `Output.tokens`, not in `Output.text`. An exception (Ctrl-C included) aborts the request within one step and
        leaves the engine usable. While another request runs: EngineBusy, or with `wait` this one begins after those
        that came before it.
        """
        asked = params_of(params, max_new_tokens).resolved(self.manifest)
        ids, max_new, text = self._ids(prompt), asked.max_new, self.text

        def work() -> Output:
            with self._requests.start(self._requests.reusing(ids, max_new, asked.depth(self.manifest))) as run:
                if run.wait(0):
                    run.wait(max_new)
                tokens, stats = run.tokens(), run.stats()
            shown = tokens[:-1] if tokens and tokens[-1] in self._stops else tokens
            return Output(tokens, text.decode(shown) if text else None, stats)

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
        asked = params_of(params, max_new_tokens).resolved(self.manifest)
        ids, max_new, drafts = self._ids(prompt), asked.max_new, asked.depth(self.manifest)
        pieces = self.text.pieces() if self.text else None
        return TokenStream(lambda abort: self._requests.begin(ids, max_new, abort, wait, drafts), pieces, self._stops)

    def chat(self, messages: Messages, max_new_tokens: int | None = 64, **template: Any) -> Output:
        """The answer to messages, generated as by `generate` from their `chat_prompt`."""
        return self.generate(self.chat_prompt(messages, **template), max_new_tokens)

    def stream_chat(self, messages: Messages, max_new_tokens: int | None = 64, **template: Any) -> TokenStream:
        """The answer to messages as it comes, as by `stream` from their `chat_prompt`."""
        return self.stream(self.chat_prompt(messages, **template), max_new_tokens)

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

    def _forget(self) -> None:
        self._requests.cached = Cached()

    @property
    def cached(self) -> list[int]:
        """The ids that the caches hold, from position 0 on; a request that runs counts what it took over only."""
        cached = self._requests.cached
        return [int(i) for i in cached.ids[: cached.own]]

    def contents(self, buffer: int) -> npt.NDArray[np.uint8]:
        """A copy of the bytes of a buffer, by its number; the engine must be idle."""
        row = self.tables["buffers"][buffer]
        begin = int(row["offset"])
        return self.backend.read(int(row["device"]), ARENAS[int(row["arena"])], begin, begin + int(row["bytes"]))

    @contextmanager
    def beside(self, tables: Tables, extra: Sequence[int]) -> Iterator[Resident]:
        """A kernel with other tables over the engine's caches and weights; see `Backend.launch`.

        The engine must be idle meanwhile, and its caches hold nothing of their own afterwards. GPUs hold one kernel
        only, so there the engine's own is launched again after.
        """
        self._forget()
        with self._requests.launches.beside(tables, extra) as kernel:
            yield kernel

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

    def close(self) -> None:
        """Ends the kernel's threads and frees its memory. Requests of other threads end with EngineError.

        In a fork of the process that loaded the engine it only drops its references.
        """
        self._requests.launches.close()
        self.tables = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
