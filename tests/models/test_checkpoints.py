"""Checkpoints that are read and refused, and drawn weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.checkpoints import BASE, ODD
from support.reference import make_model, run_eager
from tilecompile.models.checkpoint import Checkpoint
from tilecompile.models.drawn import DrawnWeights
from tilecompile.models.glm5.config import Glm5Config
from tilecompile.models.glm5.step import Glm5Step
from tilecompile.models.registry import NAMED
from tilecompile.models.spec import Storage
from tilecompile.models.weights import Weights
from tilecompile.runtime.errors import InputError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint in one file."""
    folder = tmp_path_factory.mktemp("saved")
    make_model({**ODD, "num_hidden_layers": 2}, 7)[1].save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A copy of it to break."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def refused(folder: Path) -> str:
    """The one line of the error with which the folder is refused."""
    with pytest.raises(InputError) as error:
        Checkpoint(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Changes the tensors of a checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def configure(folder: Path, **fields: object) -> None:
    """Changes fields of a checkpoint's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def consistent(weights: Weights) -> None:
    """Windows are parts of the whole parameters, in both dtypes."""
    for name, parameter in weights.parameters.items():
        whole = weights.full(name)
        assert tuple(whole.shape) == parameter.shape
        assert whole.dtype == torch.float32
        stack = whole if whole.dim() == 3 else whole.reshape(1, -1, whole.shape[-1])
        rows, last = stack.shape[1], len(stack) - 1
        for matrix, begin, end in ((0, 0, rows), (last, 0, 1), (last, rows // 3, rows // 3 + 5), (0, rows - 1, rows)):
            part = weights.read(name, matrix, begin, min(end, rows), torch.bfloat16)
            assert part.is_contiguous()
            assert torch.equal(part, stack[matrix, begin:end].to(torch.bfloat16)), name


def test_parameters_are_windows_of_the_checkpoints_tensors(with_mtp: tuple[Path, Any]) -> None:
    checkpoint = Checkpoint(with_mtp[0])
    consistent(checkpoint)
    tensors, c = load_file(with_mtp[0] / "model.safetensors"), checkpoint.config
    kv_b = tensors["model.layers.1.self_attn.kv_b_proj.weight"]
    kv_b = kv_b.view(c.num_attention_heads, c.qk_nope_head_dim + c.v_head_dim, c.kv_lora_rank)
    attn = "model.layers.1.self_attn"
    assert torch.equal(checkpoint.full(f"{attn}.w_uk"), kv_b[:, : c.qk_nope_head_dim].transpose(1, 2))
    assert torch.equal(checkpoint.full(f"{attn}.w_uv"), kv_b[:, c.qk_nope_head_dim :])
    up = checkpoint.full("model.layers.1.mlp.experts.up_proj.weight")
    assert torch.equal(up[4], tensors["model.layers.1.mlp.experts.4.up_proj.weight"])


def test_shards_are_read_like_one_file(saved: Path, tmp_path: Path) -> None:
    make_model({**ODD, "num_hidden_layers": 2}, 7)[1].save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    one, many = Checkpoint(saved), Checkpoint(tmp_path)
    assert all(torch.equal(one.full(name), many.full(name)) for name in one.parameters)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_checkpoint_is_read_in_its_type(copy: Path, saved: Path, dtype: torch.dtype) -> None:
    rewrite(copy, lambda tensors: tensors.update({key: t.to(dtype) for key, t in tensors.items()}))
    name = "model.layers.1.mlp.gate.weight"
    assert torch.equal(Checkpoint(copy).full(name), Checkpoint(saved).full(name).to(dtype).float())


def test_tied_embeddings_need_no_lm_head(copy: Path) -> None:
    rewrite(copy, lambda tensors: tensors.pop("lm_head.weight"))
    assert "lm_head.weight" in refused(copy)
    configure(copy, tie_word_embeddings=True)
    checkpoint = Checkpoint(copy)
    assert torch.equal(checkpoint.full("lm_head.weight"), checkpoint.full("model.embed_tokens.weight"))


def test_an_mtp_layer_without_tensors_is_left_out_with_a_note(copy: Path) -> None:
    configure(copy, num_nextn_predict_layers=1)
    checkpoint = Checkpoint(copy)
    assert checkpoint.config.mtp_layer is None
    assert "no tensor model.layers.2.* exists" in checkpoint.notes[0]


def test_an_incomplete_mtp_layer_is_refused(with_mtp: tuple[Path, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(with_mtp[0], tmp_path / "part"))
    rewrite(folder, lambda tensors: tensors.pop("model.layers.2.eh_proj.weight"))
    assert "1 tensor missing: model.layers.2.eh_proj.weight" in refused(folder)


def test_unreadable_checkpoint_folders_are_refused(copy: Path) -> None:
    assert "doesn't exist, want a folder" in refused(copy / "absent")
    assert "is a file, want a folder" in refused(copy / "config.json")
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-100])
    assert "model.safetensors: not a readable safetensors file" in refused(copy)
    (copy / "model.safetensors").unlink()
    assert "no model.safetensors and no model.safetensors.index.json" in refused(copy)
    (copy / "config.json").write_text('{"model_type": ')
    assert "config.json: not valid JSON" in refused(copy)
    (copy / "config.json").write_text("[]")
    assert "the content is a list, want an object" in refused(copy)
    (copy / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "config.json: can't be read as text" in refused(copy)
    (copy / "config.json").unlink()
    assert "no config.json" in refused(copy)


def test_checkpoints_with_wrong_tensors_are_refused(copy: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]
        for expert in range(11):
            del tensors[f"model.layers.1.mlp.experts.{expert}.up_proj.weight"]
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:300].clone()
        name = "model.layers.0.self_attn.o_proj.weight"
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)

    rewrite(copy, spoil)
    message = refused(copy)
    assert "12 tensors missing: model.norm.weight, model.layers.1.mlp.experts.0.up_proj.weight" in message
    assert "and 2 more" in message
    assert "1 tensor of another shape: lm_head.weight ([300, 84], want [301, 84])" in message
    assert "1 tensor of an unsupported dtype: model.layers.0.self_attn.o_proj.weight (F8_E4M3)" in message
    assert "FP8" in message


def test_an_index_that_disagrees_with_its_files_is_refused(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").rename(copy / "a.safetensors")
    index = copy / "model.safetensors.index.json"

    def write(**changes: object) -> None:
        index.write_text(json.dumps({"weight_map": {**dict.fromkeys(tensors, "a.safetensors"), **changes}}))

    write()
    Checkpoint(copy)
    write(**{"lm_head.weight": "b.safetensors"})
    assert "names files that don't exist: b.safetensors" in refused(copy)
    save_file({"other": torch.zeros(1)}, copy / "b.safetensors")
    assert "1 tensor not in the file that the index names: lm_head.weight (b.safetensors)" in refused(copy)
    write(**{"lm_head.weight": "../a.safetensors"})
    assert "want the name of a file in the folder" in refused(copy)
    write(**{"lm_head.weight": 3})
    assert "weight_map" in refused(copy)
    for text in ("{", "{}", "[]", '{"weight_map": []}'):
        index.write_text(text)
        assert "index.json: " in refused(copy)


def test_drawn_weights_depend_on_the_seed_alone() -> None:
    config = Glm5Config.from_dict({**BASE, **ODD, "num_key_value_heads": 3, "num_nextn_predict_layers": 1})
    weights = DrawnWeights(config, 3)
    consistent(weights)
    again, other = DrawnWeights(config, 3), DrawnWeights(config, 4)
    for name in reversed(weights.parameters):
        assert torch.equal(again.full(name), weights.full(name))
        assert not torch.equal(other.full(name), weights.full(name))
    names = [f"model.layers.{layer}.self_attn.q_a_proj.weight" for layer in (0, 1)]
    assert not torch.equal(weights.full(names[0]), weights.full(names[1]))
    with torch.device("meta"):
        assert {name for name, _ in Glm5Step(config, Storage(8)).named_parameters()} <= weights.parameters.keys()


def test_drawn_weights_have_pinned_values() -> None:
    """Drawn models are compared between machines and versions: their values are pinned."""
    part = DrawnWeights(NAMED["glm5-mini"], 0).read("lm_head.weight", 0, 31999, 32000)[0, :4]
    assert part.tolist() == pytest.approx([-0.009020773, -0.035963736, -0.03308966, -0.00828978], rel=1e-6)


def test_drawn_weights_make_a_lively_model() -> None:
    config = Glm5Config.from_dict({**BASE, "index_topk_pattern": "FFSS"})
    ids = torch.randint(0, config.vocab_size, (60,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    logits = run_eager(config, DrawnWeights(config, 0), ids, 3)
    assert 0.5 < logits.std() < 2
    assert len(logits.argmax(-1).unique()) > 40
