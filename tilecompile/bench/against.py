"""Peers beside the engine: each in turn, with the engine's steps measured right before and after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from tilecompile import peers
from tilecompile.bench.rounds import Steps
from tilecompile.errors import InputError, TilecompileError
from tilecompile.runtime.engine import Engine
from tilecompile.runtime.kernel import Kernel
from tilecompile.runtime.manifest import Manifest

ROUNDS = 5
"""Times that the engine's steps are measured before a peer, and again after it."""


def check_peers(names: Sequence[str], manifest: Manifest, model: str | None) -> None:
    """InputError for a name that is no peer's, or where peers can't have the engine's weights."""
    if not names and model is not None:
        raise InputError("--model says where peers get the weights: give --against too")
    if None in [peers.check(name) for name in names]:  # some that can run
        peers.weights_job(manifest, model)


def measure_peers(
    engine: Engine,
    kernel: Kernel,
    names: Sequence[str],
    model: str | None,
    context: int,
    steps: Steps,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """A record for each peer: `name`, `ms_per_step`, `spread`, `ratio` (its time over the engine's, both of the same
    minutes), `engine_ms_per_step`, and what else `peers.bench` tells; or `name` and `error`.
    """
    found: list[dict[str, Any]] = []
    for name in names:
        reason = peers.check(name)
        if reason is not None:
            found.append({"name": name, "error": reason})
            continue
        progress(f"{name}: the engine before it")
        ms = [steps.ms(engine, kernel) for _ in range(ROUNDS)]
        try:
            record = peers.bench(
                name,
                engine_manifest=engine.manifest,
                model=model,
                context=context,
                threads=engine.threads,
                progress=lambda text, name=name: progress(f"{name}: {text}"),  # type: ignore[misc]
            )
        except TilecompileError as error:  # what else was measured is not lost
            found.append({"name": name, "error": str(error)})
            continue
        progress(f"{name}: the engine after it")
        ms += [steps.ms(engine, kernel) for _ in range(ROUNDS)]
        mine = median(ms)
        record["spread"] = dict(zip(("min", "max"), record["spread"], strict=True))
        found.append({**record, "ratio": record["ms_per_step"] / mine, "engine_ms_per_step": mine})
    return found
