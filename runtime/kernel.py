"""The C interface of an engine's kernel: launch once, submit requests, wait, abort, close."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.format import Reason

REASONS = {
    Reason.NO_REASON: "running",
    Reason.STOP_ID: "stop",
    Reason.MAX_NEW: "length",
    Reason.CONTEXT_FULL: "context",
    Reason.ABORTED: "aborted",
    Reason.BAD_ID: "bad id",
    Reason.NOT_FINITE: "not finite",
    Reason.NOTHING_ALLOWED: "nothing allowed",
}
"""`Status.reason` in words."""

Record = npt.NDArray[np.void]


class Resident(Protocol):
    """A launched kernel: see `Kernel` for what its calls do. `logit_rows`: most logit rows of a request."""

    status: Record
    logit_rows: int | None

    def field(self, name: str) -> int: ...
    def fields(self, name: str) -> npt.NDArray[np.uint32]: ...
    @property
    def closed(self) -> bool: ...
    def submit(self, request: Record, logits: npt.NDArray[np.float32] | None, keep: object = None) -> int: ...
    def allow(self, bits: npt.NDArray[np.uint8]) -> None: ...
    def release(self) -> None: ...
    def wait(self, generated: int, timeout_ms: int) -> int: ...
    def tokens(self, begin: int, end: int) -> list[int]: ...
    def abort(self) -> None: ...
    def close(self) -> None: ...
