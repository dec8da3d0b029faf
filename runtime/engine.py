"""An engine in use: loaded, launched once, fed with prompts."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.buffers import Arrays, check_kept, find_operator, numbers_of, read_buffers, writes
from tilecompile.runtime.errors import EngineError, EngineStalled, InputError
from tilecompile.runtime.format import ARENAS, LAUNCH
from tilecompile.runtime.generate import Output, Run, TokenStream, check_ids, check_max_new
from tilecompile.runtime.kernel import RUNNING, STALLED, Kernel, open_kernel
from tilecompile.runtime.machine import usable_cores
from tilecompile.runtime.manifest import KERNEL, Manifest, read_manifest
from tilecompile.runtime.memory import Bytes, address, allocate, read_into, touch
from tilecompile.runtime.runnable import check_runnable
from tilecompile.runtime.tables import Tables, load_tables
from tilecompile.runtime.text import Text

Prompt = str | Iterable[int]

STALL_SECONDS = 1.0


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


def load(
    path: str | Path, threads: int | None = None, check_weights: bool = False, stall_seconds: float = STALL_SECONDS
) -> Engine:
    """Loads an engine folder and launches its kernel.

    `threads` is 1 to the engine's workers (default: the workers, but not more than the cores that the process may
    use). `check_weights` also hashes the weight files. A kernel that makes no progress for `stall_seconds` raises
    EngineStalled. EngineError if the folder is not a whole and unchanged engine that this machine can run.
    """
    begin = time.perf_counter()
    manifest = read_manifest(path, check_weights)
    if threads is None:
        threads = min(manifest.workers, usable_cores())
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= manifest.workers:
        raise InputError(f"threads is {threads!r}, want 1 to {manifest.workers} (the engine's workers)")
    if not 0 < stall_seconds < 1e6:
        raise InputError(f"stall_seconds is {stall_seconds!r}, want more than 0")
    check_runnable(manifest, threads)
    return Engine(manifest, threads, stall_seconds, begin)


class Engine:
    """A loaded engine, with its kernel resident until `close`. Use it as a context manager. Made by `load`.

    One request runs at a time; a second one, from whatever thread, is refused with EngineError. Every request starts
    at position 0, unless `score` is told to continue.
    """

    def __init__(self, manifest: Manifest, threads: int, stall_seconds: float, begin: float) -> None:
        self.manifest = manifest
        self.threads = threads
        self._stops = frozenset(manifest.eos_token_ids)
        self._stall_ms = max(1, round(1e3 * stall_seconds))
        self._tables: Tables = load_tables(manifest)
        self._library = open_kernel(manifest.file(KERNEL))
        self._text: Text | None = None
        self._busy = threading.Lock()
        self._scored = 0  # positions whose caches hold what `score` fed last
        self._launches = self._steps = self._requests = self._prompt_tokens = self._tokens = 0
        self._allocate()
        self._launch()
        self._load_ms = 1e3 * (time.perf_counter() - begin)

    def _allocate(self) -> None:
        """Arenas and weight pools, [device][arena]."""
        self._memory: list[dict[str, Bytes]] = []
        for arena, pool in zip(self.manifest.arenas, self.manifest.pools, strict=True):
            areas = {name: allocate(int(arena[name])) for name in ARENAS if name != "weight"}
            for area in areas.values():
                touch(area)
            areas["weight"] = allocate(int(pool["bytes"]))
            read_into(self.manifest.file(pool["file"]), areas["weight"], usable_cores())
            self._memory.append(areas)

    def _launch(self) -> None:
        data, buffers = self.manifest.data, self._tables["buffers"]
        bases = np.array([[address(areas[name]) for name in ARENAS] for areas in self._memory], np.uint64)
        places = bases[buffers["device"], buffers["arena"]] + buffers["offset"]
        pools = bases[:, ARENAS.index("weight")].copy()
        stops = np.array([*sorted(self._stops), 0], np.int64).astype(np.int32)
        launch = np.zeros(1, LAUNCH.dtype)
        for name in ("streams", "instructions", "operands", "waits", "notifies", "tape", "events"):
            launch[name] = address(self._tables[name])
        launch["buffers"], launch["pools"], launch["stops"] = address(places), address(pools), address(stops)
        launch["logits"] = places[data["io"]["logits"]]
        launch["stream_count"] = len(self._tables["streams"])
        launch["event_count"] = len(self._tables["events"])
        launch["program_count"] = len(data["programs"])
        launch["workers"], launch["threads"] = self.manifest.workers, self.threads
        launch["stop_count"] = len(self._stops)
        launch["vocab"], launch["max_seq_len"] = self.manifest.vocab_size, self.manifest.max_seq_len
        for name in ("next", "ids", "position"):
            launch[f"{name}_buffer"] = data["io"][name]
        launch["stall_ms"], launch["scratch_bytes"] = self._stall_ms, data["scratch_bytes"]
        self._kernel = Kernel(self._library, launch, (self._memory, self._tables, places, pools, stops))
        self._finalizer = weakref.finalize(self, self._kernel.close)

    def _relaunch(self) -> None:
        """After a stall: fresh threads and counters, and memory as at the first launch."""
        self._finalizer()
        self._launches += self._kernel.field("launches")
        self._steps += self._kernel.field("steps")
        for areas in self._memory:
            for name in ("activation", "cache", "io"):
                areas[name][:] = 0
        self._launch()

    @property
    def text(self) -> Text | None:
        """The engine's tokenizer, or None."""
        if self._text is None and self.manifest.tokenizer is not None:
            self._text = Text(self.manifest.tokenizer)
        return self._text

    @property
    def stats(self) -> EngineStats:
        """Counts over the engine's life, up to the last token that the host has seen."""
        return EngineStats(
            self._launches + self._kernel.field("launches"),
            self._steps + self._kernel.field("steps"),
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

    def _start(
        self, ids: npt.NDArray[np.int32], max_new: int, logits: npt.NDArray[np.float32] | None = None, position: int = 0
    ) -> Run:
        """Takes the engine for one request from a position on; `_done` frees it."""
        if self._kernel.closed:
            raise EngineError(f"{self.manifest.folder}: the engine is closed")
        if not self._busy.acquire(blocking=False):
            raise EngineError(
                f"{self.manifest.folder}: a request is running and an engine runs one at a time; "
                "wait for it or close its stream"
            )
        try:
            if self._kernel.field("state") == STALLED:
                self._relaunch()
            if not 0 <= position <= self._scored:
                raise InputError(f"start is {position}, want 0 to {self._scored} (positions that score has just fed)")
            self._scored = 0
            return Run(self._kernel, self._stalled, ids, max_new, logits, position)
        except BaseException:
            if not self._kernel.closed and self._kernel.wait(0, 0) == RUNNING:
                self._kernel.abort()
            self._busy.release()
            raise

    def _done(self, run: Run) -> None:
        stats = run.stats()
        self._requests += 1
        self._prompt_tokens += stats.prompt_tokens
        self._tokens += stats.tokens
        self._busy.release()

    def generate(self, prompt: Prompt, max_new_tokens: int | None = 64) -> Output:
        """Generates greedily from a text or token ids, until a stop id, `max_new_tokens` or a full context.

        `max_new_tokens=None` sets no limit of its own. The stop id is in `Output.tokens`, not in `Output.text`. An
        exception (Ctrl-C included) aborts the request within one step and leaves the engine usable.
        """
        ids, max_new = self._ids(prompt), check_max_new(max_new_tokens)
        run = self._start(ids, max_new)
        try:
            if run.wait(0):
                run.wait(max_new)
            tokens, stats = run.tokens(), run.stats()
        finally:
            self._end(run)
        shown = tokens[:-1] if tokens and tokens[-1] in self._stops else tokens
        return Output(tokens, self.text.decode(shown) if self.text else None, stats)

    def stream(self, prompt: Prompt, max_new_tokens: int | None = 64) -> TokenStream:
        """The same as an iterator over the ids, as they come; its `piece` is the text that came with the latest one.

        The request starts with the first `next`. Closing or dropping the iterator aborts it within one step.
        """
        ids, max_new = self._ids(prompt), check_max_new(max_new_tokens)
        pieces = self.text.pieces() if self.text else None
        return TokenStream(lambda: self._start(ids, max_new), self._done, pieces, self._stops)

    def score(self, ids: Prompt, start: int = 0) -> npt.NDArray[np.float32]:
        """Logits after each id: float32 [len(ids), vocab].

        `start` is the position of the first id. The positions before it keep what the last call of `score` left there,
        so that a text can be scored in pieces: InputError if the last request was none that fed them.
        """
        checked = self._ids(ids)
        if isinstance(start, bool) or not isinstance(start, (int, np.integer)):
            raise InputError(f"start is {start!r}, want a whole number")
        if start + len(checked) > self.manifest.max_seq_len:
            end = f"{len(checked)} ids from position {start}"
            raise InputError(f"{end} are too many, the engine's max_seq_len is {self.manifest.max_seq_len}")
        logits: npt.NDArray[np.float32] = np.zeros((len(checked), self.manifest.vocab_size), np.float32)
        run = self._start(checked, 0, logits, int(start))
        try:
            run.wait(0)
            self._scored = int(start) + len(checked)
        finally:
            self._end(run)
        return logits

    def buffers_after(self, ids: Prompt, operator: str | None = None) -> Arrays:
        """Feeds ids and returns copies of the buffers that an operator (OP@LAYER) writes, by tensor.

        The kernel is not cut off there: the last id's step runs to its end, then the operator's buffers are read. That
        is the same, because nothing writes to them later in the step; where the tables say otherwise, EngineError.
        None: all buffers but the weights. What a body leaves unwritten is zero or what an earlier step wrote there.
        """
        checked, numbers = self._ids(ids), None
        if operator is not None:
            written = writes(self.manifest, self._tables)
            name = find_operator(written, operator)
            check_kept(self.manifest, self._tables, written, name)
            numbers = numbers_of(written[name])
        run = self._start(checked, 0)
        try:
            run.wait(0)
            return read_buffers(self.manifest, self._tables, numbers, lambda device, name: self._memory[device][name])
        finally:
            self._end(run)

    def _end(self, run: Run) -> None:
        try:
            run.finish()
        finally:
            self._done(run)

    def _stalled(self, kernel: Kernel) -> EngineStalled:
        """The error for a kernel that waits for an event that doesn't come."""

        def word(names: list[Any], index: int) -> str:
            return str(names[index]) if index < len(names) else f"#{index}"

        index, table = kernel.field("stall_instruction"), self._tables["instructions"]
        task = f"instruction {index}"
        if index < len(table):
            record = table[index]
            kind = word(self.manifest.data["kinds"], int(record["kind"]))
            op = word(self.manifest.data["operators"], int(record["op"]))
            task = f"task {kind} of {op}, tile {tuple(int(i) for i in record['tile'])} (instruction {index})"
        worker, event, have, want = (kernel.field(f"stall_{name}") for name in ("worker", "event", "have", "want"))
        return EngineStalled(
            f"{self.manifest.folder}: the kernel stalled: worker {worker} waits before {task} for event {event}, "
            f"have {have}, want {want}; it is launched again at the next request"
        )

    def close(self) -> None:
        """Ends the kernel's threads and frees its memory. A request in another thread ends with EngineError."""
        self._finalizer()
        self._memory, self._tables = [], {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
