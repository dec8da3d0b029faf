"""Helpers for tests of peers: a peer's model, a search over stand-ins, and manifests of other weights."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from transformers import GlmMoeDsaForCausalLM

from tilecompile.measure import peers
from tilecompile.measure.peers import search as search_module
from tilecompile.measure.peers.decode import Setting
from tilecompile.measure.peers.model import DTYPES, build, open_weights
from tilecompile.measure.peers.search import Search
from tilecompile.runtime.folder.manifest import Manifest, read_manifest


def peer_model(engine: Path, model: str | None, dtype: str = "f32") -> GlmMoeDsaForCausalLM:
    """The peers' model of an engine."""
    job = peers.weights_job(read_manifest(engine), model)
    return build(open_weights(job), DTYPES[job["dtype"]], DTYPES[dtype])


class Clock:
    """A stand-in for Decoder whose settings take a known time."""

    TIMES: ClassVar[dict[tuple[str, str, str], float]] = {}

    def __init__(self, _model: object, setting: Setting, _contexts: range) -> None:
        self.ms = self.TIMES.get((setting.experts, setting.attention, setting.cache), 9.0) + (setting.dtype == "bf16")
        if setting.experts == "grouped_mm":
            raise NotImplementedError("no such product\nand more")

    def warm_up(self) -> float:
        """Takes no time."""
        return 0.0

    def trial(self) -> float:
        """The known time."""
        return self.ms

    def round(self, steps: int) -> float:
        """The known time."""
        assert steps > 0
        return self.ms


def stand_in(monkeypatch: pytest.MonkeyPatch, times: dict[tuple[str, str, str], float], budget: float) -> Search:
    """A search over stand-ins."""
    monkeypatch.setattr(Clock, "TIMES", times)
    monkeypatch.setattr(search_module, "Decoder", Clock)
    monkeypatch.setattr(search_module, "forget", lambda: None)
    monkeypatch.setattr(search_module, "build", lambda *_: torch.nn.Linear(1, 1))
    return Search(None, "bf16", range(2, 10), lambda _: None, budget)  # type: ignore[arg-type]


def changed(engine: Path, **weights: str) -> Manifest:
    """The manifest of an engine with other weights."""
    manifest = read_manifest(engine)
    data = {**manifest.data, "weights": {**manifest.data["weights"], **weights}}
    return Manifest(manifest.folder, data)
