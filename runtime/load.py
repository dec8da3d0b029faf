"""Loading: from an engine's folder to an engine that is launched, on CPUs or GPUs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tilecompile.runtime.cpu.backend import CpuBackend
from tilecompile.runtime.cuda.backend import CudaBackend
from tilecompile.runtime.cuda.options import CudaOptions, cuda_options
from tilecompile.runtime.engine import Engine
from tilecompile.runtime.errors import InputError
from tilecompile.runtime.folder.contract import check_contract
from tilecompile.runtime.folder.manifest import CUBIN, Manifest, read_manifest
from tilecompile.runtime.folder.runnable import check_cpu, check_runnable
from tilecompile.runtime.folder.tables import load_tables
from tilecompile.runtime.machine import usable_cores
from tilecompile.runtime.progress import Count

STALL_SECONDS = 1.0


def load(
    path: str | Path,
    threads: int | None = None,
    check_weights: bool = False,
    stall_seconds: float = STALL_SECONDS,
    gpus: Sequence[int] | None = None,
    on_one_gpu: bool = False,
    weights: str | None = None,
    progress: Count | None = None,
) -> Engine:
    """Loads an engine folder and launches its kernel.

    `check_weights` also hashes the weight files. A kernel that makes no progress for `stall_seconds` raises
    EngineStalled. EngineError if the folder is not a whole and unchanged engine that this machine can run.

    For CPUs: `threads` is 1 to the engine's workers (default: the workers, but not more than the cores that the process
    may use). For GPUs: `gpus` are their numbers, one a device (default: from 0 on); `on_one_gpu` runs all devices on
    one, which tests everything but memory ordering between GPUs; `weights="random:SEED"` draws weights on the
    devices instead of reading them, for measurements; `progress(done, total)` reports the bytes that were read.
    """
    options = cuda_options(gpus, on_one_gpu, weights)
    return load_with(path, options, threads, check_weights, stall_seconds, progress)


def load_with(
    path: str | Path,
    options: CudaOptions,
    threads: int | None = None,
    check_weights: bool = False,
    stall_seconds: float = STALL_SECONDS,
    progress: Count | None = None,
) -> Engine:
    """Loads as `load` does, with all options for GPUs. InputError for options that the engine's target doesn't have."""
    begin = time.perf_counter()
    manifest = read_manifest(path, check_weights)
    if not 0 < stall_seconds < 1e6:
        raise InputError(f"stall_seconds is {stall_seconds!r}, want more than 0")
    stall_ms = max(1, round(1e3 * stall_seconds))
    threads = checked_threads(manifest, options, threads)
    if threads is None:
        tables = load_tables(manifest)
        check_contract(manifest, tables)
        return Engine(manifest, tables, CudaBackend(manifest, tables, options, stall_ms, progress), begin)
    tables = load_tables(manifest)
    cpu = CpuBackend(manifest, threads, stall_ms)
    check_contract(manifest, tables)
    cpu.fill()
    return Engine(manifest, tables, cpu, begin)


def checked_threads(manifest: Manifest, options: CudaOptions, threads: int | None) -> int | None:
    """The threads that will run the engine; None on GPUs.

    EngineError where this machine can't run the engine, InputError for options that its target doesn't have. What only
    a GPU's driver knows is checked later.
    """
    check_runnable(manifest, drawn=options.random_seed is not None)
    if manifest.kernel == CUBIN:
        if threads is not None:
            raise InputError(f"threads is {threads!r}, want none: {manifest.folder} is an engine for GPUs")
        return None
    if options != CudaOptions():
        raise InputError(f"gpus, on_one_gpu and weights are for GPUs, and {manifest.folder} is an engine for CPUs")
    if threads is None:
        threads = min(manifest.workers, usable_cores())
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= manifest.workers:
        raise InputError(f"threads is {threads!r}, want 1 to {manifest.workers} (the engine's workers)")
    check_cpu(manifest, threads)
    return threads
