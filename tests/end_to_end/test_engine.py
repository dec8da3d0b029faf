"""Engines against transformers: from a checkpoint on disk through every pass to logits and greedy text."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GlmMoeDsaForCausalLM

import tilecompile
from support.reference import draw, make_model, run_eager, teacher_forced
from tilecompile.compile import compile_model
from tilecompile.models import modules
from tilecompile.models.checkpoint import Checkpoint
from tilecompile.options import CompileOptions

TOKENS = 160
ODD = {
    "num_attention_heads": 6,
    "hidden_size": 200,
    "n_routed_experts": 10,
    "num_experts_per_tok": 3,
    "vocab_size": 509,
    "q_lora_rank": 75,
    "kv_lora_rank": 45,
    "qk_nope_head_dim": 18,
    "qk_rope_head_dim": 6,
    "v_head_dim": 22,
    "index_n_heads": 3,
    "index_head_dim": 26,
    "intermediate_size": 333,
    "moe_intermediate_size": 49,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "full": {},
    "shared": {"index_topk_pattern": "FSFS", "index_topk": 24},
    "dense": {"first_k_dense_replace": 4},
    "moe": {"first_k_dense_replace": 0, "num_hidden_layers": 3, "index_topk": 48},
    "odd": {**ODD, "index_topk": 40},
    "odd_shared": {**ODD, "index_topk_pattern": "FSSS", "num_experts_per_tok": 1, "n_routed_experts": 5},
    "one_layer": {"num_hidden_layers": 1, "first_k_dense_replace": 0, "index_topk": 16},
    "short": {"index_topk": 200, "n_shared_experts": 2, "norm_topk_prob": False, "tie_word_embeddings": True},
}


QUICK = ("full", "shared", "odd", "one_layer")
"""Those of them that the quick suite compiles."""


def save(config: dict[str, Any], model: GlmMoeDsaForCausalLM, folder: Path) -> Path:
    """The model as a checkpoint folder."""
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def compiled(model: Path, output: Path, **options: Any) -> Path:
    """Compiles for 256 positions and two workers, unless the options say otherwise."""
    settings: dict[str, Any] = {"max_seq_len": 256, "workers": 2, **options}
    compile_model(CompileOptions(str(model), output, **settings))
    return output


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS])
def test_score_agrees_with_transformers(name: str, tmp_path: Path) -> None:
    config, model, ids, want, counted = draw(CONFIGS[name], TOKENS)
    assert 0.3 < float(want.std()) < 3, "the model's logits are not of order 1"
    engine_path = compiled(save(config, model, tmp_path / "model"), tmp_path / "engine", weights="f32")
    with tilecompile.load(engine_path) as engine:
        got = engine.score(ids.tolist())
        error = np.abs(got - want.numpy())[:counted].max()
        assert error <= 5e-4, f"max error {error:.1e} over {counted} positions"
        assert engine.stats.launches == 1


@pytest.mark.parametrize("name", ["odd", pytest.param("full", marks=pytest.mark.slow)])
def test_greedy_tokens_equal_transformers(name: str, tmp_path: Path) -> None:
    """128 greedy tokens; each must be the reference's choice for the text so far, unless its top two nearly tie."""
    config, model = make_model(CONFIGS[name], 11)
    engine_path = compiled(save(config, model, tmp_path / "model"), tmp_path / "engine", weights="f32")
    with tilecompile.load(engine_path) as engine:
        prompt = [3, 1, 4, 1, 5]
        tokens = engine.generate(prompt, max_new_tokens=128).tokens
    assert len(tokens) == 128
    want, near = teacher_forced(model, torch.tensor(prompt + tokens))
    counted = 128 if near is None else near - len(prompt) + 1
    assert counted >= 127, f"near-tie at {near}"
    assert want[len(prompt) - 1 : -1].argmax(-1)[:counted].tolist() == tokens[:counted]


@pytest.mark.parametrize("cache", ["f32", "bf16"])
def test_bf16_weights_agree_with_rounded_weights(cache: str, tmp_path: Path) -> None:
    config, model = make_model(ODD, 5)
    folder = save(config, model, tmp_path / "model")
    engine_path = compiled(folder, tmp_path / "engine", weights="bf16", cache=cache)
    for tensor_name, tensor in model.named_parameters():
        if tensor.dim() >= 2 and "norm" not in tensor_name:
            tensor.copy_(tensor.bfloat16().float())
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, config["vocab_size"], (TOKENS,), generator=generator)
    want, near = teacher_forced(model, ids)
    counted = TOKENS if near is None else near
    assert counted >= TOKENS - 2
    with tilecompile.load(engine_path) as engine:
        error = np.abs(engine.score(ids.tolist()) - want.numpy())[:counted]
    if cache == "f32":
        assert error.max() <= 5e-4
    else:
        # A cache of 8 significant bits moves selections, so only the bulk can be close.
        assert np.median(error.max(1)) <= 0.1


def test_one_launch_serves_many_requests(tmp_path: Path) -> None:
    config, model = make_model({}, 1)
    engine_path = compiled(save(config, model, tmp_path / "model"), tmp_path / "engine")
    with tilecompile.load(engine_path) as engine:
        first = engine.generate([1, 2, 3], max_new_tokens=200).tokens
        for _ in range(5):
            engine.reset()
            assert engine.generate([1, 2, 3], max_new_tokens=200).tokens == first
        assert engine.stats.launches == 1
        assert engine.stats.tokens >= 1000
        assert engine.stats.steps >= 1000


@pytest.mark.slow
def test_threads_and_workers_do_not_change_bits(tmp_path: Path) -> None:
    config, model = make_model(ODD, 2)
    folder = save(config, model, tmp_path / "model")
    ids = list(range(100))
    results = []
    for workers in (1, 2, 5):
        engine_path = compiled(folder, tmp_path / f"engine{workers}", workers=workers)
        for threads in {1, min(2, workers), workers}:
            with tilecompile.load(engine_path, threads=threads) as engine:
                results.append(engine.score(ids))
    for result in results[1:]:
        assert np.array_equal(result, results[0])


def test_both_workers_share_each_layer(tmp_path: Path) -> None:
    """With two workers, the tables give both of them weight bytes of every layer, in nearly equal amounts."""
    config, model = make_model({}, 3)
    engine_path = compiled(save(config, model, tmp_path / "model"), tmp_path / "engine")
    tables = {n: np.load(engine_path / "tables" / f"{n}.npy") for n in ("streams", "instructions", "tape")}
    operators = json.loads((engine_path / "engine.json").read_text())["operators"]
    share: dict[int, list[int]] = {}
    for stream in tables["streams"][tables["streams"]["program"] == 0]:
        for ins in tables["instructions"][stream["begin"] : stream["end"]]:
            parts = operators[ins["op"]].split("layers.")
            if len(parts) > 1 and ins["tape_count"]:
                layer = int(parts[1].split(".")[0])
                runs = tables["tape"][ins["tape_begin"] : ins["tape_begin"] + ins["tape_count"]]
                share.setdefault(layer, [0, 0])[stream["worker"]] += int(runs["bytes"].sum())
    assert sorted(share) == [0, 1, 2, 3]
    for layer, (a, b) in share.items():
        assert 0.8 < a / b < 1.25, f"layer {layer}: {a} and {b} bytes"


def moved(self: modules.GatedMlp, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """The gated MLP with its activation on the other branch."""
    out: torch.Tensor = x + self.down_proj(self.gate_proj(h) * modules.silu(self.up_proj(h)))
    return out


@pytest.mark.parametrize(
    ("target", "name", "change", "seen"),
    [
        (modules, "silu", partial(torch.nn.functional.gelu, approximate="tanh"), "mul(gelu_tanh(acc0), acc1)"),
        pytest.param(modules.GatedMlp, "forward", moved, "mul(acc0, silu(acc1))", marks=pytest.mark.slow),
    ],
    ids=["another activation", "moved activation"],
)
def test_a_changed_model_changes_the_kernel_and_its_logits(
    target: Any, name: str, change: Any, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the model changes: the emitted kernel and its numbers follow."""
    config, model = make_model({"num_hidden_layers": 2}, 4)
    folder = save(config, model, tmp_path / "model")
    plain = compiled(folder, tmp_path / "plain", weights="f32")
    monkeypatch.setattr(target, name, change)
    changed = compiled(folder, tmp_path / "changed", weights="f32")
    assert seen in (changed / "kernel.cpp").read_text()
    assert seen not in (plain / "kernel.cpp").read_text()
    ids = torch.arange(20, dtype=torch.int32)
    checkpoint = Checkpoint(folder)
    want = run_eager(checkpoint.config, checkpoint, ids).numpy()
    with tilecompile.load(changed) as engine:
        assert np.abs(engine.score(ids.tolist()) - want).max() < 1e-4
    with tilecompile.load(plain) as engine:
        assert np.abs(engine.score(ids.tolist()) - want).max() > 1e-2
