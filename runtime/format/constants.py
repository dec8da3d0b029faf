"""Enums and constants of the program format: what the compiler, the kernels and the runtime mean by a number."""

from __future__ import annotations

from enum import IntEnum

FORMAT_VERSION = 10

MAX_TOKENS = 32
"""Largest number of tokens that one step can carry."""

MAX_PROGRAMS = 8
"""Largest number of step programs of an engine."""

MAX_DRAFTS = 7
"""Most tokens that are drafted before a step verifies them."""

NONE = 0xFFFFFFFF
"""An absent index in a u32 field."""

AUTO_DRAFTS = NONE
"""`Request.drafts`: as many as pay, by what the kernel itself measures (`targets/draft_depth.h`)."""

COMMIT_KIND = 0
"""Task kind of the sink, which every kernel implements in its loop."""

ARENAS = ("activation", "cache", "weight", "io")
"""Memory that a buffer is in: scratch of one step, state kept over steps, the pool file, the controller's words."""

DTYPES = ("f32", "bf16", "i32", "fp8")
DTYPE_BYTES = {"f32": 4, "bf16": 2, "i32": 4, "fp8": 1}

READ, WRITE = 0, 1
"""`Region.mode`."""

PREDICATED = 1
"""`Instruction.flags`, `DeviceRun.flags`: the body runs only in steps with NEEDS_LOGITS."""

CONDITIONAL = 2
"""`Instruction.flags`, `DeviceRun.flags` in a GPU's tables: a run that some steps skip, or an instruction with one."""

NEEDS_LOGITS = 1
"""`Step.flags`: the logits of the step's tokens are needed."""

REMOTE = 1
"""Lowest bit of a counter's address in a GPU's tables: other devices notify it, or it is another device's."""

ALIGN = 64
"""Bytes that buffers and tiles are aligned to: a cache line, and the widest vector."""

KEY_WORDS = 2
"""32-bit words of a candidate's key (`ops/topk_candidates`): complement of the position, then the ordered score."""

INTERVAL_BITS = 11
"""A round of a selection (`ops/topk_select`) sorts by that many bits of the scores, in 1 << INTERVAL_BITS intervals."""

SCORE_KEYS = 32
"""Index keys that a CPU body transposes into scratch memory at a time (`ops/index_score`)."""

PREFETCH_BYTES = 4096
"""How far ahead of its weights a CPU body prefetches."""


class State(IntEnum):
    """`Status.state`: what a launched kernel does. PAUSED: a request waits for the host's next mask."""

    IDLE = 0
    RUNNING = 1
    STALLED = 2
    CLOSED = 3
    PAUSED = 4


class Reason(IntEnum):
    """`Status.reason`: why a request ended.

    A stop id was sampled, `max_new` tokens exist, the caches are full, the host aborted it, or an id was sampled that
    the vocabulary doesn't have. NOT_FINITE: a token was to be sampled from logits of which one is infinite or NaN;
    NOTHING_ALLOWED: with all ids forbidden.
    """

    NO_REASON = 0
    STOP_ID = 1
    MAX_NEW = 2
    CONTEXT_FULL = 3
    ABORTED = 4
    BAD_ID = 5
    NOT_FINITE = 6
    NOTHING_ALLOWED = 7
