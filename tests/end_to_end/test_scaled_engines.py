"""Engines for CPUs with weights that have scales: what their numbers say, whatever the devices, threads and steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilecompile
from support.engines import ODD, tiny_model
from tilecompile import SamplingParams
from tilecompile.compile import compile_model
from tilecompile.interpret.interpreter import Interpreter
from tilecompile.options import CompileOptions
from tilecompile.runtime.weight_formats import FORMATS, ROWS

IDS = [3, 88, 17, 41, 5, 5, 60, 0, 72, 19, 33, 8, 3, 88, 17, 2, 101, 64, 9, 40, 77, 12, 6, 51, 30]
MODELS: dict[str, dict[str, Any]] = {
    "drafts": {"num_nextn_predict_layers": 1, "num_hidden_layers": 2},
    "odd": {**ODD, "num_hidden_layers": 2, "index_topk": 16},
}


def compiled(folder: Path, weights: str, overrides: dict[str, Any], **options: Any) -> Path:
    """The engine of a small model with drawn weights."""
    folder.mkdir()
    model = tiny_model(folder / "model", **overrides)
    settings = {"max_seq_len": 64, "workers": 2, "seed": 7, "weights": weights, **options}
    compile_model(CompileOptions(str(model), folder / "engine", **settings))
    return folder / "engine"


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("drafts", "fp8"),
        ("odd", "nvfp4"),
        pytest.param("odd", "fp8", marks=pytest.mark.slow),
        pytest.param("drafts", "nvfp4", marks=pytest.mark.slow),
    ],
)
def test_logits_are_those_of_the_packed_numbers(name: str, weights: str, tmp_path: Path) -> None:
    """The interpreter reads numbers and scales from the pools. Drafts change no token."""
    path = compiled(tmp_path / "a", weights, MODELS[name])
    want = Interpreter(path).score(IDS)
    rms = float(np.sqrt(np.mean(want.astype(np.float64) ** 2)))
    found = []
    for threads in (1, 2):
        with tilecompile.load(path, threads=threads) as engine:
            found.append(engine.score(IDS))
            pieces = np.concatenate([engine.score(IDS[:4]), engine.score(IDS[4:], 4)])
        assert np.array_equal(found[-1], pieces)
    assert np.array_equal(*found)
    assert np.abs(found[0] - want).max() <= 1e-5 * rms
    with tilecompile.load(path) as engine:
        texts = []
        for drafts in range(engine.manifest.programs.drafts + 1):
            engine.reset()
            texts.append(engine.generate(IDS[:5], SamplingParams(30, temperature=1.0, seed=3, drafts=drafts)).tokens)
    assert texts == [texts[0]] * len(texts)
    assert len(texts) > 1


@pytest.mark.parametrize(
    ("weights", "placement"),
    [
        pytest.param("fp8", "tensor_parallel", marks=pytest.mark.slow),
        ("nvfp4", "even"),
        pytest.param("fp8", "even", marks=pytest.mark.slow),
        pytest.param("nvfp4", "tensor_parallel", marks=pytest.mark.slow),
    ],
)
def test_devices_have_the_scales_of_the_whole_matrices(weights: str, placement: str, tmp_path: Path) -> None:
    """Cut over devices, sums end in another order; the numbers are the same."""
    sizes = {"num_attention_heads": 4, "v_head_dim": 8, "index_head_dim": 16, "moe_intermediate_size": 32}
    overrides = {**sizes, "intermediate_size": 64, "num_hidden_layers": 2}
    alone: dict[str, Any] = {"drafts": 0, "prefill": 1}
    one = compiled(tmp_path / "one", weights, overrides, **alone)
    with tilecompile.load(one) as engine:
        want = engine.score(IDS)
    path = compiled(tmp_path / "two", weights, overrides, devices=2, placement=placement, **alone)
    with tilecompile.load(path) as engine:
        got = engine.score(IDS)
    assert np.abs(got - want).max() <= 2e-5 * float(np.sqrt(np.mean(want.astype(np.float64) ** 2)))


def test_every_format_with_scales_is_tried() -> None:
    assert {name for name, stored in FORMATS.items() if stored.scaled and ROWS in stored.layouts} == {"fp8", "nvfp4"}
