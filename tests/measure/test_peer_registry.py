"""The table of peers: what it names exists."""

from __future__ import annotations

import importlib
import inspect

import pytest

from tilecompile.measure.peers.registry import BENCH, PEERS, Peer
from tilecompile.measure.peers.search import Search
from tilecompile.measure.warmup.systems import PLACES, SYSTEMS


@pytest.mark.parametrize("peer", PEERS.values(), ids=list(PEERS))
def test_peer_is_measured_by_what_there_is(peer: Peer) -> None:
    assert peer.bench or peer.warm_up
    assert peer.needs
    if peer.bench:
        assert list(inspect.signature(getattr(Search, peer.bench.search)).parameters) == ["self"]
        assert peer.bench.budget > 0
    if peer.warm_up:
        program = importlib.import_module(f"tilecompile.measure.warmup.{peer.warm_up.program}")
        inspect.signature(program.main).bind(None, *peer.warm_up.arguments)
        named = {word[1:-1] for word in peer.warm_up.arguments if word.startswith("{")}
        assert named <= set(PLACES)


def test_names_that_bench_and_warmup_accept() -> None:
    assert list(BENCH) == ["transformers", "torch-compile", "cuda-graphs"]
    assert list(SYSTEMS) == ["transformers", "torch-compile", "torch-compile-kept", "cuda-graphs", "vllm", "sglang"]
    assert [name for name, system in SYSTEMS.items() if system.gpu_only] == ["cuda-graphs"]
    assert [name for name, system in SYSTEMS.items() if system.keeps_cache] == ["torch-compile-kept"]
