"""An engine in use: loaded, launched once, fed with prompts."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import EllipsisType, TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.backend import Backend
from tilecompile.runtime.chat import CHAT, ChatTemplates, Messages
from tilecompile.runtime.claims import Claim, Claims
from tilecompile.runtime.cpu.backend import CpuBackend
from tilecompile.runtime.cpu.launch import stalled
from tilecompile.runtime.errors import EngineError, EngineStalled, InputError
from tilecompile.runtime.folder.files import read_bytes
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.folder.operators import read_operators
from tilecompile.runtime.folder.tables import Tables
from tilecompile.runtime.format import ARENAS, State
from tilecompile.runtime.generate import Output, Run, Stats, TokenStream, check_ids
from tilecompile.runtime.kernel import Resident
from tilecompile.runtime.launches import Launches
from tilecompile.runtime.replay.buffers import Arrays, check_kept, find_operator, numbers_of, read_buffers, writes
from tilecompile.runtime.replay.replay import prepared, record, replay_score
from tilecompile.runtime.replay.selections import Selections
from tilecompile.runtime.sampling import GREEDY, SamplingParams, params_of
from tilecompile.runtime.text import Text

Prompt = str | Iterable[int]
Fed = TypeVar("Fed")


@dataclass(frozen=True)
class EngineStats:
    """Counts over the engine's life. `launches` is 1 unless the kernel stalled and was launched again."""

    launches: int
    steps: int
    requests: int
    prompt_tokens: int
    tokens: int
    threads: int
    load_ms: float


class Engine:
    """A loaded engine, with its kernel resident until `close`. Use it as a context manager. Made by `load`.

    One request runs at a time; a second one, from whatever thread, is refused with EngineError. Every request starts
    at position 0, unless `score` is called with a `start`.
    """

    def __init__(self, manifest: Manifest, tables: Tables, backend: Backend, begin: float) -> None:
        self.manifest, self.tables, self.backend = manifest, tables, backend
        self._stops = frozenset(manifest.eos_token_ids)
        self._text: Text | None = None
        self._pid = os.getpid()
        self._claims = Claims(manifest.folder)
        self._scored = 0  # positions whose caches hold what `score` fed last
        self._requests = self._prompt_tokens = self._tokens = 0
        try:
            # Parsing waits until text is needed; the folder may have been replaced by then.
            self._tokenizer = read_bytes(manifest.tokenizer) if manifest.tokenizer else None
            self._chat = read_bytes(manifest.file(CHAT)) if CHAT in manifest.data["files"] else None
            self._launches = Launches(tables, backend)
        except BaseException:
            backend.close()
            raise
        self._load_ms = 1e3 * (time.perf_counter() - begin)

    @property
    def _kernel(self) -> Resident:
        return self._launches.kernel

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
        return EngineStats(
            self._launches.launches,
            self._launches.steps,
            self._requests,
            self._prompt_tokens,
            self._tokens,
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

    def _usable(self) -> None:
        if os.getpid() != self._pid:
            raise EngineError(
                f"{self.manifest.folder}: the engine was loaded in process {self._pid} and its threads are not in "
                "this fork; load it here"
            )
        if self._kernel.closed:
            raise EngineError(f"{self.manifest.folder}: the engine is closed")

    def _take(self, claim: threading.Lock, position: int) -> None:
        """Assigns the engine to a locked claim, which feeds it from a position on."""
        self._usable()
        self._claims.take(claim)
        if self._kernel.field("state") == State.STALLED:
            self._launches.relaunch()
        if not 0 <= position <= self._scored:
            raise InputError(f"start is {position}, want 0 to {self._scored} (positions that score has just fed)")
        self._scored = 0

    def _request(
        self,
        claim: threading.Lock,
        ids: npt.NDArray[np.int32],
        max_new: int = 0,
        logits: npt.NDArray[np.float32] | None = None,
        position: int = 0,
    ) -> Run:
        """Takes the engine for a locked claim and starts a request, which a `with` block around the run ends.

        A `with` block of the claim goes around it: wherever an interrupt falls, also while the run ends, the claim is
        given up. What an interrupted end left running is aborted by the next request.
        """
        self._take(claim, position)
        try:
            return Run(self._kernel, self._stalled, ids, max_new, logits, position, self._count)
        except BaseException:
            if not self._kernel.closed:
                self._kernel.abort()
            raise

    def _count(self, stats: Stats) -> None:
        """Adds a request that has ended to the engine's counts."""
        self._requests += 1
        self._prompt_tokens += stats.prompt_tokens
        self._tokens += stats.tokens

    def _fed(self, position: int, count: int, feed: Callable[[], Fed]) -> Fed:
        """Calls `feed`, which feeds `count` ids from a position on in requests of its own, and counts one request."""
        with (claim := Claim()):
            self._take(claim, position)
            result = feed()
            self._scored = position + count
            self._requests += 1
            self._prompt_tokens += count
        return result

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | int | None = GREEDY,
        *,
        max_new_tokens: int | EllipsisType | None = ...,
    ) -> Output:
        """Generates from a text or token ids, until a stop id, `max_new_tokens` or a full context.

        `params` say how tokens are chosen; a number or None is their `max_new_tokens`. The stop id is in
        `Output.tokens`, not in `Output.text`. An exception (Ctrl-C included) aborts the request within one step and
        leaves the engine usable.
        """
        asked = params_of(params, max_new_tokens).resolved(self.manifest)
        ids, max_new, text = self._ids(prompt), asked.max_new, self.text
        with (claim := Claim()), self._request(claim, ids, max_new) as run:
            if run.wait(0):
                run.wait(max_new)
            tokens, stats = run.tokens(), run.stats()
        shown = tokens[:-1] if tokens and tokens[-1] in self._stops else tokens
        return Output(tokens, text.decode(shown) if text else None, stats)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | int | None = GREEDY,
        *,
        max_new_tokens: int | EllipsisType | None = ...,
    ) -> TokenStream:
        """An iterator over the ids of `generate`, as they come; its `piece` is the text that came with the latest one.

        The request starts with the first `next`. Closing or dropping the iterator aborts it within one step.
        """
        asked = params_of(params, max_new_tokens).resolved(self.manifest)
        ids, max_new = self._ids(prompt), asked.max_new
        pieces = self.text.pieces() if self.text else None
        return TokenStream(lambda claim: self._request(claim, ids, max_new), pieces, self._stops)

    def chat(self, messages: Messages, max_new_tokens: int | None = 64, **template: Any) -> Output:
        """The answer to messages, generated as by `generate` from their `chat_prompt`."""
        return self.generate(self.chat_prompt(messages, **template), max_new_tokens)

    def stream_chat(self, messages: Messages, max_new_tokens: int | None = 64, **template: Any) -> TokenStream:
        """The answer to messages as it comes, as by `stream` from their `chat_prompt`."""
        return self.stream(self.chat_prompt(messages, **template), max_new_tokens)

    def score(self, ids: Prompt, start: int = 0, selections: Selections | None = None) -> npt.NDArray[np.float32]:
        """Logits after each id: float32 [len(ids), vocab].

        `start` is the position of the first id. The positions before it keep what the last call of `score` left there,
        so that a text can be scored in pieces: InputError unless the last request fed them.

        With `selections`, of this or another engine of the model, steps use these positions and experts, whatever this
        engine would choose. That is slow: a kernel of its own takes one id at a time.
        """
        checked, start = self._placed(ids, start)
        if selections is not None:
            replay = prepared(self, selections, start, len(checked))
            return self._fed(start, len(checked), lambda: replay_score(self, replay, checked, selections))
        logits: npt.NDArray[np.float32] = np.zeros((len(checked), self.manifest.vocab_size), np.float32)
        most = self._kernel.logit_rows or len(checked)
        for begin in range(0, len(checked), most):
            piece = slice(begin, begin + most)
            fed = checked[piece]
            with (claim := Claim()), self._request(claim, fed, 0, logits[piece], start + begin) as run:
                run.wait(0)
                self._scored = start + begin + len(fed)
        return logits

    def selections(self, ids: Prompt, start: int = 0) -> Selections:
        """What the engine selects while it is fed as by `score`, as input for `score` of this or another engine."""
        checked, start = self._placed(ids, start)
        return self._fed(start, len(checked), lambda: record(self, self._kernel, checked, start))

    def _placed(self, ids: Prompt, start: int) -> tuple[npt.NDArray[np.int32], int]:
        """Ids and the position of the first, checked."""
        checked = self._ids(ids)
        if isinstance(start, bool) or not isinstance(start, (int, np.integer)):
            raise InputError(f"start is {start!r}, want a whole number")
        if start + len(checked) > self.manifest.max_seq_len:
            end = f"{len(checked)} ids from position {start}"
            raise InputError(f"{end} are too many, the engine's max_seq_len is {self.manifest.max_seq_len}")
        return checked, int(start)

    def contents(self, buffer: int) -> npt.NDArray[np.uint8]:
        """A copy of the bytes of a buffer, by its number; the engine must be idle."""
        row = self.tables["buffers"][buffer]
        begin = int(row["offset"])
        return self.backend.read(int(row["device"]), ARENAS[int(row["arena"])], begin, begin + int(row["bytes"]))

    @contextmanager
    def beside(self, tables: Tables, extra: Sequence[int]) -> Iterator[Resident]:
        """A kernel with other tables over the engine's caches and weights; see `Backend.launch`.

        The engine must be idle meanwhile. GPUs hold one kernel only, so there the engine's own is launched again after.
        """
        with self._launches.beside(tables, extra) as kernel:
            yield kernel

    def buffers_after(self, ids: Prompt, operator: str | None = None) -> Arrays:
        """Feeds ids and returns copies of the buffers that an operator (OP@LAYER) writes, by tensor.

        The kernel doesn't stop there: the last id's step runs to its end, then the operator's buffers are read. They
        still hold its results if nothing writes to them later in the step, else EngineError. None: all buffers but the
        weights. What a body leaves unwritten is zero or what an earlier step wrote there.
        """
        checked, numbers = self._ids(ids), None
        if operator is not None:
            written = writes(self.manifest, self.tables)
            layers = {o.name: o.layer for o in read_operators(self.manifest) if o.name in written}
            name = find_operator(layers, operator)
            check_kept(self.manifest, self.tables, written, name)
            numbers = numbers_of(written[name])
        with (claim := Claim()), self._request(claim, checked) as run:
            run.wait(0)
            return read_buffers(self.manifest, self.tables, numbers, self.backend.read)

    def _stalled(self, kernel: Resident) -> EngineStalled:
        return stalled(self.manifest, self.tables, kernel)

    def close(self) -> None:
        """Ends the kernel's threads and frees its memory. A request in another thread ends with EngineError.

        In a fork of the process that loaded the engine it only drops its references.
        """
        self._launches.close()
        self.tables = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
