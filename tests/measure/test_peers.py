"""Peers: the same model on the same weights, the right context, the fastest setting, and processes that fail."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GlmMoeDsaForCausalLM

import tilecompile
from support.engines import Built
from support.paths import TINY_CHECKPOINT
from support.peers import changed, peer_model, stand_in
from support.reference import teacher_forced
from tilecompile.compile import compile_model
from tilecompile.errors import InputError
from tilecompile.measure import peers
from tilecompile.measure.children import Child
from tilecompile.measure.peers.decode import Decoder, Setting
from tilecompile.measure.peers.model import open_weights
from tilecompile.measure.peers.registry import BENCH
from tilecompile.options import CompileOptions
from tilecompile.runtime.folder.manifest import read_manifest


def agrees(engine: Path, model: GlmMoeDsaForCausalLM, ids: list[int]) -> None:
    """The model's logits are the engine's, up to the first near-tie of a choice, and most positions count."""
    want, near = teacher_forced(model, torch.tensor(ids))
    counted = len(ids) if near is None else near
    assert counted >= len(ids) * 9 // 10, f"near-tie at {near}"
    with tilecompile.load(engine) as loaded:
        got = loaded.score(ids)
    assert np.abs(got).max() > 0.5
    assert np.abs(got - want.numpy())[:counted].max() <= 5e-4


@pytest.mark.parametrize("name", ["odd", pytest.param("shared", marks=pytest.mark.slow)])
def test_a_checkpoint_makes_the_engines_model(name: str, built: Callable[[str], Built]) -> None:
    engine = built(name)
    agrees(engine.path, peer_model(engine.path, str(engine.path.parent / "model")), engine.ids)


def test_a_seed_makes_the_engines_model(tiny: Path) -> None:
    agrees(tiny, peer_model(tiny, None), [5, 2, 250, 17, 99, 1, 1, 64])


@pytest.mark.slow
def test_the_trained_checkpoint_makes_the_engines_model(tmp_path: Path) -> None:
    """bf16 weights: the model computes in f32 with the values that the engine has rounded."""
    compile_model(CompileOptions(str(TINY_CHECKPOINT), tmp_path / "engine", max_seq_len=128, target="cpu-portable"))
    ids = [11, 205, 7, 480, 33, 902, 15, 15, 600, 71, 8, 340, 127, 256, 512, 1000, 3, 77, 19, 450]
    agrees(tmp_path / "engine", peer_model(tmp_path / "engine", str(TINY_CHECKPOINT)), ids)
    rounded = peer_model(tmp_path / "engine", str(TINY_CHECKPOINT), "bf16")
    theirs = GlmMoeDsaForCausalLM.from_pretrained(TINY_CHECKPOINT)
    for name, parameter in theirs.state_dict().items():
        found = rounded.state_dict()[name]
        assert found.dtype == parameter.dtype, name
        assert torch.equal(found, parameter), name


def test_a_peer_whose_packages_are_missing_is_refused(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    assert [peers.check(name) for name in BENCH] == [None, None, None]
    with pytest.raises(InputError, match="peer 'llama' is unknown, want one of: transformers, torch-compile, cuda-g"):
        peers.check("llama")
    with pytest.raises(InputError, match=r"peer cuda-graphs runs on a GPU, and .* is for cpu-portable$"):
        bench("cuda-graphs", tiny)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name))
    assert peers.check("torch-compile") == "not installed: transformers (pip install 'tilecompile[bench]')"
    with pytest.raises(peers.PeerError, match="peer transformers: not installed: transformers"):
        bench("transformers", tiny)


def bench(name: str, engine: Path, context: int = 64, model: str | None = None) -> dict[str, Any]:
    """Measures a peer of an engine."""
    said: list[str] = []
    manifest = read_manifest(engine)
    out = peers.bench(
        name,
        engine_manifest=manifest,
        model=model,
        context=context,
        threads=1,
        progress=lambda stage, *_: said.append(stage),
        prompt_tokens=40,
    )
    assert any("importing" in line for line in said)
    assert any("measuring" in line for line in said)
    return out


def check_result(out: dict[str, Any], name: str, context: int) -> None:
    """What `peers.bench` promises."""
    assert (out["name"], out["context"], out["threads"]) == (name, context, 1)
    assert 0 < out["spread"][0] <= out["ms_per_step"] <= out["spread"][1]
    assert out["rounds"] * out["steps"] >= 50
    assert set(out["version"]) == {"torch", "transformers"}
    tried = out["settings"]["tried"]
    chosen = {key: value for key, value in out["settings"].items() if key != "tried"}
    times = {json.dumps({k: v for k, v in t.items() if k != "ms_per_step"}): t.get("ms_per_step") for t in tried}
    assert json.dumps(chosen) in times
    assert times[json.dumps(chosen)] in sorted(t for t in times.values() if t is not None)[:3]


def test_bench_of_transformers_tries_every_setting(tiny: Path) -> None:
    out = bench("transformers", tiny)
    check_result(out, "transformers", 64)
    tried = out["settings"]["tried"]
    assert {t["dtype"] for t in tried} == {"bf16", "f32"}
    assert {t["experts"] for t in tried} == {"batched_mm", "grouped_mm", "eager"}
    assert {t["attention"] for t in tried} == {"eager", "sdpa"}
    assert {t["cache"] for t in tried} == {"static", "dynamic"}
    assert [(read["dtype"], read["prompt_tokens"]) for read in out["prefill"]] == [("bf16", 40), ("f32", 40)]
    for read in out["prefill"]:
        assert read["tokens_per_second"] == pytest.approx(40e3 / read["ms"])
        assert read["settings"]["experts"] in ("grouped_mm", "eager")


@pytest.mark.slow
def test_bench_of_torch_compile_is_faster_than_eager(tiny: Path) -> None:
    out = bench("torch-compile", tiny)
    check_result(out, "torch-compile", 64)
    done = [t for t in out["settings"]["tried"] if "ms_per_step" in t]
    assert len(done) >= 5, out["settings"]["tried"]
    assert out["warm_up_seconds"] > 1
    assert out["ms_per_step"] < bench("transformers", tiny)["ms_per_step"]


@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_steps_have_the_contexts(tiny: Path, cache: str) -> None:
    """Every round goes through the same contexts: a step of context c is at position c - 1 and sees c rows."""
    model = peer_model(tiny, None)
    seen: list[int] = []
    rows: list[int] = []
    hooks = [
        model.model.rotary_emb.register_forward_pre_hook(
            lambda _m, _a, given: seen.append(int(given["position_ids"])), with_kwargs=True
        ),
        model.model.layers[1].self_attn.kv_b_proj.register_forward_pre_hook(lambda _m, a: rows.append(a[0].shape[-2])),
    ]
    with torch.inference_mode():
        decoder = Decoder(model, Setting("f32", cache=cache), range(20, 24))
        for _ in range(2):
            seen.clear(), rows.clear()
            decoder.round(4)
            assert seen == [19, 20, 21, 22]
            assert rows == ([23] * 4 if cache == "static" else [20, 21, 22, 23])
    for hook in hooks:
        hook.remove()


def test_the_search_finds_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    search = stand_in(monkeypatch, {("eager", "eager", "static"): 4, ("eager", "sdpa", "static"): 2.0}, 100)
    search.eager()
    best = search.measured(3, 16)
    assert best.tried.setting == Setting("f32", "eager", "sdpa", "static")
    assert (best.ms, best.rounds, best.steps) == (2.0, [2.0] * 3, 8)
    failed = [t.shown() for t in search.tried if t.ms is None]
    assert [f["failed"] for f in failed] == ["NotImplementedError: no such product"] * 2


def test_the_search_keeps_to_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    search = stand_in(monkeypatch, {}, -1)
    search.eager()
    assert all((t.failed or "").startswith("not tried") for t in search.tried)
    with pytest.raises(InputError, match="no setting runs; bf16, batched_mm experts"):
        search.measured(3, 16)


# jobs


def test_jobs_without_usable_weights_are_refused(tiny: Path, built: Callable[[str], Built]) -> None:
    checkpoint = built("odd").path
    model = str(checkpoint.parent / "model")
    with pytest.raises(InputError, match="its weights come from a checkpoint, and peers need them too: give --model"):
        peers.weights_job(read_manifest(checkpoint), None)
    with pytest.raises(InputError, match="--model nowhere: want a folder with"):
        peers.weights_job(read_manifest(checkpoint), "nowhere")
    with pytest.raises(InputError, match=r"--model glm5-mini: vocab_size is 32000, .* was compiled with 203"):
        peers.weights_job(read_manifest(checkpoint), "glm5-mini")
    with pytest.raises(InputError, match="source is 'none', want a checkpoint or a seed"):
        peers.weights_job(changed(tiny, source="none"), None)
    job = peers.weights_job(read_manifest(checkpoint), model)
    assert (job["folder"], job["dtype"]) == (model, "f32")
    assert peers.weights_job(read_manifest(tiny), None)["seed"] == 1


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ('print(\'{"error": "no luck"}\')', "peer transformers: no luck"),
        ("import sys; sys.exit('went wrong')", "ended without a result: exit code 1: went wrong"),
        ("import os; os.kill(os.getpid(), 11)", "ended without a result: it was ended by SIGSEGV"),
        ("print('noise'); print('[1]')", "ended without a result: exit code 0: nothing on stderr"),
    ],
)
def test_a_peer_that_fails_is_one_line(code: str, words: str, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "module_command", lambda *_: [sys.executable, "-c", code])
    with pytest.raises(peers.PeerError) as caught:
        bench("transformers", tiny)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_context_beyond_the_engine_is_refused(tiny: Path) -> None:
    with pytest.raises(InputError, match="context is 99999, want 2 to 16384"):
        bench("transformers", tiny, context=99999)


def test_a_child_takes_its_children_along() -> None:
    code = (
        "import subprocess, sys, json\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(json.dumps({'pid': other.pid}), flush=True)\n"
        "other.wait()\n"
    )
    with Child([sys.executable, "-c", code], {}) as child:
        pid = next(child.objects())["pid"]
        os.kill(pid, 0)
    for _ in range(100):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
        if not state or state.startswith("Z"):
            break
        time.sleep(0.05)
    assert not state or state.startswith("Z")


def test_the_callers_process_stays_without_torch(tiny: Path) -> None:
    code = (
        "import sys; from tilecompile.measure import peers;"
        "from tilecompile.runtime.folder.manifest import read_manifest;"
        f"peers.check('transformers'); peers.weights_job(read_manifest({str(tiny)!r}), None);"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_values_keep_the_tensors_order(tiny: Path) -> None:
    """Stacked experts hold gate above up, and kv_b_proj each head's key rows above its value rows."""
    model = peer_model(tiny, None)
    weights = open_weights(peers.weights_job(read_manifest(tiny), None))
    experts: Tensor = model.model.layers[1].mlp.experts.gate_up_proj
    width = model.config.moe_intermediate_size
    prefix = "model.layers.1.mlp.experts"
    assert torch.equal(experts[3, :width], weights.read(f"{prefix}.gate_proj.weight", 3, 0, width).bfloat16().float())
    assert torch.equal(experts[3, width:], weights.read(f"{prefix}.up_proj.weight", 3, 0, width).bfloat16().float())
