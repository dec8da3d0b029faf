"""A model outside the package compiles and runs when its spec is registered; nothing else names models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import tilecompile
from support import dense_model
from support.dense_model import DENSE, DenseConfig, DenseStep
from tilecompile.cli.app import app
from tilecompile.compile import compile_model
from tilecompile.errors import InputError
from tilecompile.measure import peers
from tilecompile.measure.peers.model import build, open_weights
from tilecompile.models import registry
from tilecompile.models.drawn import DrawnWeights
from tilecompile.models.spec import Storage
from tilecompile.models.weights import Weights
from tilecompile.options import CompileOptions
from tilecompile.runtime.folder.manifest import read_manifest

PACKAGE = Path(tilecompile.__file__).parent
IDS = [3, 88, 17, 41, 5, 5, 60, 0, 72, 19, 33, 8]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model, for the time of a test."""
    monkeypatch.setitem(registry.SPECS, DENSE.architecture, DENSE)
    for name, config in DENSE.named.items():
        monkeypatch.setitem(registry.NAMED, name, config)


def eager(config: DenseConfig, weights: Weights[DenseConfig]) -> np.ndarray:
    """Logits [T, vocab] of the eager step, one token after the other."""
    step = DenseStep(config, Storage(config.positions), 1)
    tensors = {**dict(step.named_parameters()), "table": step.table}
    for name, tensor in tensors.items():
        tensor.copy_(weights.full(name))
    with torch.inference_mode():
        out = [step(torch.tensor([t], dtype=torch.int32), torch.tensor([i]))[0] for i, t in enumerate(IDS)]
    return torch.cat(out).numpy()


@pytest.mark.parametrize(("devices", "placement"), [(1, "single"), (2, "tensor_parallel")])
def test_a_registered_model_computes_what_its_module_does(devices: int, placement: str, tmp_path: Path) -> None:
    config = DENSE.named["small-dense"]
    options = CompileOptions("small-dense", tmp_path / "e", seed=3, devices=devices, placement=placement, workers=2)
    compile_model(options)
    manifest = read_manifest(tmp_path / "e")
    assert manifest.data["model"]["architecture"] == dense_model.ARCHITECTURE
    assert registry.read_config(manifest.data["model"]["config"]) == config
    with tilecompile.load(tmp_path / "e") as engine:
        got = engine.score(IDS)
    want = eager(config, DrawnWeights(config, 3))
    assert want.std() > 0.3
    assert np.abs(got - want).max() < 1e-4


def test_its_checkpoint_is_read_by_its_own_names(tmp_path: Path) -> None:
    config = DenseConfig(depth=1, vocab_size=95, eos_token_id=(7,))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    drawn = DrawnWeights(config, 5)
    tensors = {w.tensor: w.shape for p in drawn.parameters.values() for w in p.windows}
    whole = {
        name: drawn._window(name, s, slice(0, s[0] if len(s) > 1 else 1), slice(0, s[-1]))
        for name, s in tensors.items()
    }
    save_file({name: t.reshape(tensors[name]).contiguous() for name, t in whole.items()}, folder / "model.safetensors")
    compile_model(CompileOptions(str(folder), tmp_path / "e", workers=1))
    with tilecompile.load(tmp_path / "e") as engine:
        got = engine.score(IDS)
    assert read_manifest(tmp_path / "e").eos_token_ids == [7]
    assert np.abs(got - eager(config, drawn)).max() < 1e-4
    (folder / "model.safetensors").unlink()
    save_file({"wte": torch.zeros(95, 48)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"9 tensors missing: output, ln_f, h\.0\.ln_1"):
        compile_model(CompileOptions(str(folder), tmp_path / "other"))


def test_a_large_model_of_equal_layers_is_planned_short(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(DenseConfig(depth=20).to_dict()))
    options = CompileOptions(
        str(folder), tmp_path / "e", machine="h200x8", weights="bf16", no_weights=True, no_kernel=True
    )
    compiled = compile_model(options)
    stored = np.load(tmp_path / "e" / "tables" / "instructions.npy")
    assert 3 * len(stored) < compiled.proof.instructions


def test_it_is_shown_beside_the_others() -> None:
    about = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)
    assert about["named"]["small-dense"]["experts"] == 0
    assert about["named"]["small-dense"]["layers"] == 2
    assert "GlmMoeDsaForCausalLM or SmallDenseForCausalLM" in about["checkpoint_folder"]


def test_peers_have_no_class_for_it(tmp_path: Path) -> None:
    compile_model(CompileOptions("small-dense", tmp_path / "e", seed=3, no_kernel=True, workers=1))
    job = peers.weights_job(read_manifest(tmp_path / "e"), None)
    with pytest.raises(InputError, match="none is known for SmallDenseForCausalLM"):
        build(open_weights(job), torch.float32, torch.float32)
    with pytest.raises(InputError, match=r"--model glm5-mini: is GlmMoe\w+, .* was compiled from SmallDenseFor"):
        peers.weights_job(read_manifest(tmp_path / "e"), "glm5-mini")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"architectures": ["OtherForCausalLM"]}, "architectures is ['OtherForCausalLM'], want "),
        ({"architectures": "SmallDenseForCausalLM"}, "architectures is 'SmallDenseForCausalLM', want "),
        ({"architectures": [["x"]]}, "architectures is [['x']], want "),
        ({"model_type": "other"}, "model_type is 'other', want 'glm_moe_dsa' or 'small_dense'"),
        ({"act": "relu"}, "act is 'relu', want 'silu'"),
        ({"architectures": None, "depth": 0}, "depth is 0, want an integer of at least 1"),
    ],
)
def test_what_is_refused_of_a_configuration(values: dict[str, object], words: str) -> None:
    base = DENSE.named["small-dense"].to_dict()
    if "model_type" in values:
        del base["architectures"]
    with pytest.raises(InputError) as error:
        registry.read_config({**base, **values}, "here")
    message = str(error.value)
    assert message.startswith(f"here: {words}")
    assert "\n" not in message
    if values.get("architectures"):
        assert message.endswith("'GlmMoeDsaForCausalLM' or 'SmallDenseForCausalLM'")


def test_architectures_and_names_are_registered_once() -> None:
    with pytest.raises(ValueError, match="SmallDenseForCausalLM, small-dense: registered twice"):
        registry.register(DENSE)


def sources() -> Iterator[Path]:
    """The package's Python files outside `models/`; links lead to the others at the top."""
    for folder in (PACKAGE, PACKAGE / "runtime", PACKAGE / "schedules"):
        yield from (p for p in folder.rglob("*.py") if PACKAGE / "models" not in p.parents)


def test_nothing_outside_models_names_a_model() -> None:
    """Only the checkpoint in examples/ is named."""
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in sources()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"glm_?5|glm_?moe|mtp_?step", line.replace("tiny-glm5", ""), re.IGNORECASE)
        or "tilecompile.models.glm" in line
    ]
    assert len(list(sources())) > 150
    assert found == []
