"""Peers on a GPU, tested without one: where they run and in what type, and steps that are captured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from support.peers import changed, peer_model, stand_in
from tilecompile.measure import peers
from tilecompile.measure.peers import search as search_module
from tilecompile.measure.peers.decode import Decoder, Setting
from tilecompile.runtime.folder.manifest import Manifest, read_manifest
from tilecompile.runtime.progress import silent


def for_gpu(engine: Path, dtype: str = "fp8") -> Manifest:
    """The manifest of an engine, as if it had been compiled for a GPU."""
    manifest = changed(engine, dtype=dtype)
    return Manifest(manifest.folder, {**manifest.data, "target": {"name": "sm_90a", "isa": "sm_90a", "features": []}})


def test_peers_of_an_engine_for_gpus_run_there_in_bf16(tiny: Path) -> None:
    manifest = for_gpu(tiny)
    assert (peers.device_of(manifest), peers.device_of(read_manifest(tiny))) == ("cuda", "cpu")
    assert peers.weights_job(manifest, None)["dtype"] == "bf16"
    how = {"engine_manifest": manifest, "model": None, "context": 8, "threads": 0, "progress": silent}
    with pytest.raises(peers.PeerError, match=r"^peer cuda-graphs: torch has no GPU here$"):
        peers.bench("cuda-graphs", **how)


def test_searches_on_a_gpu_try_captured_steps_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[object] = []
    search = stand_in(monkeypatch, {("batched_mm", "sdpa", "static"): 2.0}, 100)
    search.device, search.stored = "cuda", "bf16"
    monkeypatch.setattr(search_module, "build", lambda *args: devices.append(args[3]))
    search.captured()
    assert [t.setting for t in search.tried] == [
        Setting("bf16", "batched_mm", graph=True),
        Setting("bf16", "grouped_mm", graph=True),
        Setting("bf16", "batched_mm", "sdpa", graph=True),
    ]
    assert search.measured(2, 4).tried.setting.shown()["cuda_graph"] is True
    search.compiled()
    modes = [t.setting.options["mode"] for t in search.tried if t.setting.options]
    assert modes == ["reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
    search.eager()
    assert {t.setting.dtype for t in search.tried} == {"bf16"}
    assert devices == ["cuda"]


class Reads(TorchDispatchMode):
    """Refuses what a captured step can't do: reading a value, and tensors made of Python's numbers."""

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        assert name not in ("item", "is_nonzero", "_local_scalar_dense", "nonzero", "lift_fresh"), name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_step_that_is_captured_reads_no_value(tiny: Path, attention: str) -> None:
    with torch.inference_mode():
        decoder = Decoder(peer_model(tiny, None), Setting("f32", attention=attention), range(20, 24))
        decoder.rewind()
        want = decoder.step(decoder._ids)
        decoder.rewind()
        with Reads():
            assert torch.equal(decoder.step(decoder._ids), want)
        with pytest.raises(AssertionError, match="item"), Reads():
            want.item()


def test_a_captured_step_replays_on_what_it_is_given(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for CUDA graphs that runs the captured call again, rounds go through the same contexts."""
    model, seen = peer_model(tiny, None), list[int]()
    recorded: list[Callable[[], None]] = []

    class Graph:
        def replay(self) -> None:
            self.call()

        @contextmanager
        def capture(self) -> Iterator[None]:
            yield
            self.call = recorded[-1]

    forward = Decoder._forward

    def record(self: Decoder, ids: Tensor) -> Tensor:
        result = forward(self, ids)
        recorded.append(lambda: result.copy_(forward(self, ids)))
        return result

    stream = SimpleNamespace(wait_stream=lambda _: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda made: made.capture())
    monkeypatch.setattr(Decoder, "_forward", record)
    with torch.inference_mode():
        decoder = Decoder(model, Setting("f32", graph=True), range(20, 24))
        plain = Decoder(model, Setting("f32"), range(20, 24))
        model.model.rotary_emb.register_forward_pre_hook(
            lambda _m, _a, given: seen.append(int(given["position_ids"])), with_kwargs=True
        )
        for made in (decoder, plain):
            seen.clear()
            made.round(4)
            assert seen == [19, 20, 21, 22]
        decoder.rewind(), plain.rewind()
        ids, other = decoder._ids, plain._ids
        for _ in range(4):
            ids, other = decoder.step(ids), plain.step(other)
            assert torch.equal(ids, other)
