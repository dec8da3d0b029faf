"""How an engine for GPUs is to be run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tilecompile.runtime.errors import InputError

MAX_SEED = (1 << 32) - 1


@dataclass(frozen=True)
class CudaOptions:
    """How an engine for GPUs is to be run; the fields after `random_seed` are for measurements.

    gpus: the GPUs' numbers, one a device (default: from 0 on); on_one_gpu: all devices on one GPU, which tests the
    node's program but not memory ordering between GPUs; random_seed: weights are drawn on the devices instead of
    read. cubin: another build of the kernel, which records `times` rows of timestamps; share: only this device's
    program runs, and what it sends to others is looped back; latency_ns: added to each wait for another device.
    """

    gpus: tuple[int, ...] | None = None
    on_one_gpu: bool = False
    random_seed: int | None = None
    cubin: Path | None = None
    times: int = 0
    share: int | None = None
    latency_ns: int = 0


def cuda_options(gpus: Sequence[int] | None, on_one_gpu: bool, weights: str | None) -> CudaOptions:
    """The options that `load` takes. InputError if one is wrong."""
    if gpus is not None:
        wrong = [g for g in gpus if isinstance(g, bool) or not isinstance(g, int) or g < 0]
        if wrong or not gpus or len(set(gpus)) != len(gpus):
            raise InputError(f"gpus is {list(gpus)!r}, want different numbers from 0")
    return CudaOptions(None if gpus is None else tuple(gpus), bool(on_one_gpu), random_seed(weights))


def random_seed(weights: str | None) -> int | None:
    """The seed in "random:SEED", or None for the engine's own weights. InputError for anything else."""
    if weights is None:
        return None
    found = re.fullmatch(r"random:(\d{1,10})", weights) if isinstance(weights, str) else None
    if not found or int(found[1]) > MAX_SEED:
        raise InputError(f'weights is {weights!r}, want "random:SEED" with a seed from 0 to {MAX_SEED}')
    return int(found[1])
