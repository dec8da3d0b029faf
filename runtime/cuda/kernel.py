"""A launched kernel on GPUs: its mailbox in host memory, and a watch over it."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime import format as fmt
from tilecompile.runtime.cuda.device import Gpu
from tilecompile.runtime.cuda.driver import NOT_READY, SUCCESS, error_of
from tilecompile.runtime.cuda.memory import Pinned
from tilecompile.runtime.cuda.sampler import DeviceSampler
from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.folder.tables import Tables
from tilecompile.runtime.format import State
from tilecompile.runtime.kernel import Record

LOGITS_BYTES = 64 << 20
"""Pinned memory for the logits of one request, if one row needs no more."""

WATCH_SECONDS = 0.02
"""Time between two polls of whether the kernel still runs."""

END_SECONDS = 10.0
"""Time that a kernel gets to end by itself before its blocks are made to leave, and again after that."""

HUNG_SECONDS = 10.0
"""Time without a finished step, beside a hundred times the stall time, after which a kernel counts as stalled."""

COUNTS = ("fed", "generated", "reason", "program_steps", "proposed", "accepted", "extended")
"""Fields of `Status` about the current request."""

NAP_SECONDS = 5e-5

LOGPROB_WORDS = 1 + 2 * fmt.MAX_LOGPROBS
"""Words of a token's log-probabilities at most."""


class Mail:
    """The host memory that a kernel and its host share, by parts: `host[name]` as an array, `at[name]` for devices.

    mailbox, status: one record; stalls: one a worker; tokens: i4 [max_seq_len + 1]; ids: i4 [max_seq_len];
    script: i4 [max_seq_len + 1 + MAX_DRAFTS]; logits: f4 [rows, vocab]; logprobs, if the kernel `samples`: i4
    [max_seq_len + 1, LOGPROB_WORDS].
    """

    def __init__(self, gpu: Gpu, workers: int, max_seq_len: int, vocab: int, samples: bool) -> None:
        rows = max(1, min(max_seq_len, LOGITS_BYTES // (4 * vocab)))
        parts: list[tuple[str, int, Any]] = [
            ("mailbox", 1, fmt.MAILBOX.dtype),
            ("status", 1, fmt.STATUS.dtype),
            ("stalls", workers, fmt.STALL.dtype),
            ("tokens", max_seq_len + 1, np.dtype("<i4")),
            ("ids", max_seq_len, np.dtype("<i4")),
            ("script", max_seq_len + 1 + fmt.MAX_DRAFTS, np.dtype("<i4")),
            ("logprobs", (max_seq_len + 1) * LOGPROB_WORDS if samples else 0, np.dtype("<i4")),
            ("logits", rows * vocab, np.dtype("<f4")),
        ]
        sizes = [-(-count * dtype.itemsize // 256) * 256 for _, count, dtype in parts]
        self.memory = Pinned(gpu, sum(sizes))
        self.host: dict[str, npt.NDArray[Any]] = {}
        self.at: dict[str, int] = {}
        begin = 0
        for (name, count, dtype), size in zip(parts, sizes, strict=True):
            self.host[name] = self.memory.host[begin : begin + count * dtype.itemsize].view(dtype)
            self.at[name] = self.memory.address + begin
            begin += size
        self.host["logits"] = self.host["logits"].reshape(rows, vocab)
        self.rows = rows

    def free(self) -> None:
        """Frees the memory."""
        self.host = {}
        self.memory.free()


class CudaKernel:
    """A kernel that is resident on GPUs, with the calls of `Kernel`, which are thread-safe.

    streams: a GPU and a stream for each launch; leave: makes all blocks end, without the controller; free: frees
    what the launch alone used, once the kernel has ended; sampler: None for a kernel that decodes greedily.
    """

    def __init__(
        self,
        mail: Mail,
        tables: Tables,
        streams: list[tuple[Gpu, Any]],
        stall_ms: int,
        leave: Callable[[], None],
        free: Callable[[], None],
        sampler: DeviceSampler | None = None,
    ) -> None:
        self.status: Record = np.zeros(1, fmt.STATUS.dtype)
        self.status["launches"] = 1
        self.logit_rows: int | None = mail.rows
        self._mail, self._tables, self._streams = mail, tables, streams
        self._leave, self._free, self._sampler = leave, free, sampler
        self._patience = max(HUNG_SECONDS, 0.1 * stall_ms)
        self._mutex = threading.RLock()
        self._gate = threading.RLock()  # keeps the mailbox while a request is aborted, which waits for no one
        self._fence = threading.Lock()
        self._pid = os.getpid()
        self._closing = self._ended = False
        self._failure: EngineError | None = None
        self._submitted = 0
        self._logits: npt.NDArray[np.float32] | None = None
        self._allowed = 0  # pauses that have been answered
        self._keep: object = None  # what `_logprobs` points into
        self._logprobs = self._width = self._copied = 0  # address and words a token of log-probabilities, tokens so far
        self._watched = self._moved = time.monotonic()
        self._last: tuple[int, int] = (0, 0)

    def field(self, name: str) -> int:
        """A field of the last state seen."""
        return int(self.status[name][0])

    def fields(self, name: str) -> npt.NDArray[np.uint32]:
        """A field of several numbers."""
        return np.asarray(self.status[name][0], np.uint32)

    @property
    def handle(self) -> int:
        """EngineError: only kernels for CPUs have functions of their own."""
        raise EngineError("the engine is for GPUs, and this is for CPU engines")

    @property
    def closed(self) -> bool:
        """Whether the kernel is closed or about to be."""
        return self._closing or os.getpid() != self._pid

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise EngineError(f"the engine was loaded in process {self._pid}, and a fork has no GPU of it")
        if self._closing:
            raise EngineError("the engine is closed")
        if self._failure is not None:
            raise self._failure

    def allow(self, bits: npt.NDArray[np.uint8]) -> None:
        """Goes on with a request that is PAUSED: these ids can come next. Does nothing if it was aborted meanwhile."""
        self._check()
        with self._mutex:
            self._check()
            if self._poll() != State.PAUSED or self._sampler is None:
                return
            self._sampler.allow(bits)
            self._allowed = int(self._mail.host["status"]["pauses"][0])
            self._moved = time.monotonic()
            self._mail.host["mailbox"]["allowed"] = self._allowed

    def submit(self, request: Record, logits: npt.NDArray[np.float32] | None, keep: object = None) -> int:
        """Starts a request: 0, or -1 while one is running, or -2 after a stall. `logits` is filled when it ends."""
        self._check()
        with self._mutex:
            self._check()
            state = self._poll()
            if state != State.IDLE:
                return -1 if state in (State.RUNNING, State.PAUSED) else -2
            count = int(request["count"][0])
            if logits is not None and count > self._mail.rows:
                raise EngineError(f"logits of {count} positions are asked for at once, want {self._mail.rows} at most")
            ids = (ctypes.c_int32 * count).from_address(int(request["ids"][0]))
            self._mail.host["ids"][:count] = ids
            self._logits = logits
            mail = self._mail.host["mailbox"]
            mail["ids"] = self._mail.at["ids"]
            mail["logits"] = 0 if logits is None else self._mail.at["logits"]
            for name in ("count", "position", "max_new", "drafts", "logprob_count"):
                mail[name] = request[name]
            mail["script"] = self._script(request)
            self._keep, self._copied = keep, 0
            self._logprobs, self._width = int(request["logprobs"][0]), 1 + 2 * int(request["logprob_count"][0])
            mail["logprobs"] = self._mail.at["logprobs"] if self._logprobs else 0
            if self._sampler is not None:
                self._sampler.begin(request, mail)
            with self._fence:  # whoever sees the number sees the request: a lock orders what comes before and after it
                self._submitted += 1
            self._moved = time.monotonic()
            mail["submitted"] = self._submitted
            return 0

    def _script(self, request: Record) -> int:
        """Copies what takes the place of a request's drafts; returns where devices see it, 0 if it has none."""
        if not request["script"][0]:
            return 0
        room = self._mail.host["script"]
        count = min(int(request["max_new"][0]) + fmt.MAX_DRAFTS, len(room))
        room[:count] = (ctypes.c_int32 * count).from_address(int(request["script"][0]))
        return self._mail.at["script"]

    def release(self) -> None:
        """Drops the logits of a request that has ended."""
        self._logits = self._keep = None
        self._logprobs = 0

    def _copy_logprobs(self) -> None:
        """Hands on the log-probabilities of tokens that have come since the last time."""
        until, begin = self.field("generated"), self._copied
        if not self._logprobs or until <= begin:
            return
        words = (until - begin) * self._width
        to = np.ctypeslib.as_array((ctypes.c_int32 * words).from_address(self._logprobs + 4 * begin * self._width))
        to[:] = self._mail.host["logprobs"][begin * self._width :][:words]
        self._copied = until

    def _poll(self) -> int:
        """Reads the state into `status`; returns it."""
        seen, now = self._mail.host["status"][0], self.status.copy()
        request = int(seen["request"])  # before the state, which is that of an earlier request until this is stored
        state = int(seen["state"])
        if state != State.STALLED and request != self._submitted:  # not yet taken up
            state = State.RUNNING
            for name in COUNTS:
                now[name] = 0
        else:
            if state == State.PAUSED and int(seen["pauses"]) == self._allowed:  # it hasn't seen yet that it may go on
                state = State.RUNNING
            for name in COUNTS:  # after the state: they are whole once it is not RUNNING
                now[name] = seen[name]
        now["steps"] = seen["steps"]
        now["state"], now["request"] = state, self._submitted
        if state == State.STALLED:
            self._explain(now)
        self.status = now
        return state

    def _explain(self, status: Record) -> None:
        """Writes to `status` where the kernel stalled: at the first waiting instruction in the operators' order."""
        stalls, instructions = self._mail.host["stalls"], self._tables["instructions"]
        status["stall_instruction"] = fmt.NONE
        waiting = [w for w in np.flatnonzero(stalls["waits"]) if stalls["event"][w] != fmt.NONE]
        known = [w for w in waiting if stalls["instruction"][w] < len(instructions)]
        if not known:
            return
        first = min(known, key=lambda w: int(instructions["op"][stalls["instruction"][w]]))
        status["stall_worker"] = first
        for name in ("instruction", "event", "have", "want"):
            status[f"stall_{name}"] = stalls[name][first]

    def wait(self, generated: int, timeout_ms: int) -> int:
        """Waits until more than `generated` tokens exist or the request has ended; returns the state.

        CudaError if the kernel has failed meanwhile.
        """
        end = time.monotonic() + 1e-3 * timeout_ms
        self._check()
        with self._mutex:
            while True:
                self._check()
                state = self._poll()
                now = time.monotonic()
                if state != State.RUNNING or self.field("generated") > generated or now >= end:
                    break
                self._watch(now)
                time.sleep(NAP_SECONDS)
            self._copy_logprobs()
            if state != State.RUNNING and self._logits is not None:
                rows = self.field("fed")
                self._logits[:rows] = self._mail.host["logits"][:rows]
        return state

    def _watch(self, now: float) -> None:
        """Polls, every WATCH_SECONDS, whether the kernel still runs and makes progress."""
        if now - self._watched < WATCH_SECONDS:
            return
        self._watched = now
        for gpu, stream in self._streams:
            code = gpu.attempt("cuStreamQuery", stream)
            if code == NOT_READY or self._poll() != State.RUNNING:
                continue
            failure = EngineError(f"{gpu.where} ({gpu.name}): the kernel has ended by itself")
            self._failure = failure if code == SUCCESS else error_of(f"{gpu.where} ({gpu.name})", "the kernel", code)
            raise self._failure
        last = self.field("steps"), self.field("generated")
        if last != self._last:
            self._last, self._moved = last, now
        elif now - self._moved > self._patience:
            self._mail.host["status"]["state"] = State.STALLED
            self._leave()

    def tokens(self, begin: int, end: int) -> list[int]:
        """Generated ids of the current or last request."""
        self._check()
        return [int(i) for i in self._mail.host["tokens"][begin:end]]

    def abort(self) -> None:
        """Ends the current request at the next step."""
        self._check()
        with self._gate:
            self._check()
            self._mail.host["mailbox"]["abort"] = self._submitted

    @property
    def ended(self) -> bool:
        """Whether no block runs any more."""
        return all(gpu.attempt("cuStreamQuery", stream) != NOT_READY for gpu, stream in self._streams)

    def _await_end(self) -> bool:
        end = time.monotonic() + END_SECONDS
        while not self.ended:
            if time.monotonic() > end:
                return False
            time.sleep(1e-3)
        return True

    def close(self) -> None:
        """Ends the kernel. EngineError if it doesn't end: then nothing on its GPUs can be given back."""
        self._closing = True
        if os.getpid() != self._pid:
            return
        with self._mutex:
            if self._ended:
                return
            self._mail.host["mailbox"]["stop"] = 1
            if not self._await_end():
                self._leave()
                if not self._await_end():
                    where = ", ".join(sorted({gpu.where for gpu, _ in self._streams}))
                    raise EngineError(f"{where}: the kernel doesn't end; the memory is free once this process ends")
            self._ended = True
            self.release()
            with self._gate:
                self._free()
