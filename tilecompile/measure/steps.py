"""Decode steps at a chosen context, timed: what `bench` and `timeline` measure.

The caches are filled with random numbers, so that a long context needs no long prompt. Steps run on a kernel of their
own over the engine's memory, which may differ from the engine's in its code, its tables or the layout of its weights.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from tilecompile.runtime.cpu.kernel import Kernel
from tilecompile.runtime.cpu.launch import Memory, launch_kernel, stalled
from tilecompile.runtime.engine import Engine
from tilecompile.runtime.errors import InputError
from tilecompile.runtime.folder.tables import Tables
from tilecompile.runtime.format import ARENAS, DTYPES
from tilecompile.runtime.kernel import Resident
from tilecompile.runtime.run import Ask, Run, Stats

STALL_MS = 1000


@dataclass(frozen=True)
class Timed:
    """Steps of one request. `ms_per_step` is their mean; `contexts` holds the context of each, in positions."""

    ms_per_step: float
    contexts: range


def fill_caches(engine: Engine, seed: int = 0) -> None:
    """Fills all attention caches with standard normal numbers; they hold no ids afterwards."""
    engine.reset()
    random = np.random.default_rng(seed)
    for buffer in engine.tables["buffers"]:
        if ARENAS[buffer["arena"]] != "cache":
            continue
        drawn = random.standard_normal(int(buffer["rows"]) * int(buffer["cols"]), np.float32)
        if DTYPES[buffer["dtype"]] == "bf16":
            data = (drawn.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        else:
            data = drawn.view(np.uint8)
        engine.backend.write(int(buffer["device"]), "cache", int(buffer["offset"]), data)


def window(context: int, steps: int, max_seq_len: int) -> range:
    """Contexts of `steps` successive steps around `context`, shifted where the engine's limits require it.

    InputError if the engine can't hold the context.
    """
    if not 2 <= context <= max_seq_len:
        raise InputError(f"context is {context}, want 2 to {max_seq_len} (the engine's max_seq_len)")
    steps = min(steps, max_seq_len - 1)
    begin = min(max(2, context - steps // 2), max_seq_len - steps + 1)
    return range(begin, begin + steps)


def time_steps(engine: Engine, kernel: Resident, contexts: range) -> Timed:
    """Runs one request whose steps have these contexts (from 2 on), after one step that isn't timed.

    `kernel` is one of `kernel_for_steps` or `another_kernel`. EngineStalled as in `Engine.generate`.
    """
    ids = np.full(contexts.start - 1, contexts.start % engine.manifest.vocab_size, np.int32)
    ask = Ask(ids, contexts.start - 2, len(contexts) + 1)
    with Run(kernel, lambda k: stalled(engine.manifest, engine.tables, k), ask) as run:
        run.wait(0)
        run.wait(len(contexts))
    settle(engine, kernel)
    return Timed(run.stats().ms_per_step, contexts)


@dataclass(frozen=True)
class Generated:
    """A request's tokens and figures.

    `ms_per_token` is the mean time of those after the first; where the host saw all at once, that of the whole request.
    """

    tokens: list[int]
    stats: Stats
    ms_per_token: float


def time_request(engine: Engine, kernel: Resident, ask: Ask) -> Generated:
    """Runs one request to its end on a kernel as `time_steps` takes it. EngineStalled as in `Engine.generate`."""
    with Run(kernel, lambda k: stalled(engine.manifest, engine.tables, k), ask) as run:
        first = run.wait(0)
        run.wait(ask.max_new)
        tokens, stats = run.tokens(), run.stats()
    settle(engine, kernel)
    later = stats.tokens - first
    each = (stats.total_ms - stats.time_to_first_token_ms) / later if later else stats.total_ms / max(1, first)
    return Generated(tokens, stats, each)


def settle(engine: Engine, kernel: Resident) -> None:
    """Waits until the idle kernel's threads are parked, so that what is measured next has the cores for itself."""
    while kernel.field("parked") < engine.threads:
        time.sleep(1e-3)
        kernel.wait(0, 0)


@contextmanager
def kernel_for_steps(engine: Engine) -> Iterator[Resident]:
    """A kernel for `time_steps`, which ends no request at a stop id; on GPUs in the place of the engine's own."""
    with engine.beside(engine.tables, ()) as kernel:
        yield kernel


@contextmanager
def another_kernel(
    engine: Engine, library: ctypes.CDLL | None = None, tables: Tables | None = None, memory: Memory | None = None
) -> Iterator[Kernel]:
    """Launches a second kernel over the engine's memory, with other code, tables or memory, and closes it at the end.

    It ends no request at a stop id, and nothing checks its tables. The engine must be idle meanwhile, and its caches
    hold nothing of its own afterwards.
    """
    engine.reset()
    kernel = launch_kernel(
        library or engine.cpu.library,
        engine.manifest,
        tables or engine.tables,
        memory or engine.cpu.memory,
        engine.threads,
        STALL_MS,
        stops=(),
    )
    try:
        yield kernel
    finally:
        kernel.close()
