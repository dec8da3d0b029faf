"""The peers that come with the package: what each needs, where it runs, how `bench` and `warmup` measure it.

Which class of transformers they run follows from the engine's architecture (`ModelSpec.peer`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Bench:
    """How `bench` measures a peer: the method of `Search` that looks for its fastest setting.

    After `budget` seconds it tries nothing new.
    """

    search: Literal["eager", "compiled", "captured"]
    budget: float


@dataclass(frozen=True)
class WarmUp:
    """How `warmup` measures a peer: a program of `measure/warmup/` and its arguments, with places in braces.

    Each run gets an empty compile cache, unless `keeps_cache`. `about` says in words what is run.
    """

    about: str
    program: str
    arguments: tuple[str, ...]
    keeps_cache: bool = False


@dataclass(frozen=True)
class Peer:
    """A peer: the packages that it `needs`, and how it is measured; None where it can't be. `gpu_only`: not on CPUs."""

    name: str
    needs: tuple[str, ...]
    bench: Bench | None
    warm_up: WarmUp | None
    gpu_only: bool = False


_TORCH = ("torch", "transformers")
_STEP = ("{model}", "{ids}", "{threads}", "{dtype}", "{device}")

PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "transformers",
            _TORCH,
            Bench("eager", 120.0),
            WarmUp("eager, batched_mm experts", "run_transformers", _STEP),
        ),
        Peer(
            "torch-compile",
            _TORCH,
            Bench("compiled", 300.0),
            WarmUp("torch.compile, nothing compiled before", "run_transformers", (*_STEP, "compile")),
        ),
        Peer(
            "torch-compile-kept",
            _TORCH,
            None,
            WarmUp(
                "torch.compile again, with the cache of an earlier compilation",
                "run_transformers",
                (*_STEP, "compile"),
                keeps_cache=True,
            ),
        ),
        Peer(
            "cuda-graphs",
            _TORCH,
            Bench("captured", 120.0),
            WarmUp("captured as a CUDA graph", "run_transformers", (*_STEP, "graph")),
            gpu_only=True,
        ),
        Peer("vllm", ("vllm",), None, WarmUp("vLLM, empty compile cache", "run_vllm", ("{model}", "{ids}"))),
        Peer("sglang", ("sglang",), None, WarmUp("SGLang, empty compile cache", "run_sglang", ("{model}", "{ids}"))),
    )
}
"""The peers by name, in the order in which they are listed."""

BENCH = {peer.name: peer.bench for peer in PEERS.values() if peer.bench}
"""How each peer is measured whose steps can be."""


def absent(packages: Iterable[str]) -> list[str]:
    """Those of the packages that aren't installed."""
    return [package for package in packages if importlib.util.find_spec(package) is None]
