"""The model side: configurations, the eager step against transformers, export, checkpoints, drawn weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GlmMoeDsaConfig

from support.reference import SMALL, draw, load, make_model, run_eager, teacher_forced
from tilecompile.models.checkpoint import Checkpoint
from tilecompile.models.drawn import DrawnWeights
from tilecompile.models.glm5.config import Glm5Config
from tilecompile.models.glm5.mtp import MtpStep
from tilecompile.models.glm5.parameters import INV_FREQ, parameters
from tilecompile.models.glm5.step import Glm5Step
from tilecompile.models.registry import NAMED, read_config
from tilecompile.models.spec import Steps, Storage
from tilecompile.models.weights import Weights
from tilecompile.runtime.errors import InputError

ODD: dict[str, Any] = {
    "hidden_size": 84,
    "intermediate_size": 71,
    "moe_intermediate_size": 37,
    "num_attention_heads": 3,
    "q_lora_rank": 45,
    "kv_lora_rank": 29,
    "qk_nope_head_dim": 11,
    "qk_rope_head_dim": 6,
    "v_head_dim": 13,
    "index_n_heads": 5,
    "index_head_dim": 17,
    "index_topk": 19,
    "n_routed_experts": 11,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "vocab_size": 301,
}
"""Sizes that no vector width divides."""

SHARED = {"index_topk_freq": 4, "index_skip_topk_offset": 2, "num_hidden_layers": 7, "norm_topk_prob": False}
BASE = {"architectures": ["GlmMoeDsaForCausalLM"], "model_type": "glm_moe_dsa", **SMALL}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small operators gain nothing from threads, and lose much where other processes are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------------------------------------------- configurations


def test_named_configurations_have_the_published_values() -> None:
    full = [i for i, kind in enumerate(NAMED["glm-5.2"].indexer_types) if kind == "full"]
    assert full == [0, 1, 2, *range(6, 75, 4)]
    assert NAMED["glm-5"] == NAMED["glm-5.1"]
    assert NAMED["glm-5.2"] == NAMED["glm-5.3"]
    assert NAMED["glm-5"].mlp_layer_types == ("dense",) * 3 + ("sparse",) * 75
    assert NAMED["glm-5.2"].rope_theta == 8e6
    mini = NAMED["glm5-mini"]
    assert mini.parameter_count() == 1_321_443_696
    read = mini.parameter_count(mini.num_experts_per_tok) - mini.vocab_size * mini.hidden_size
    assert 0.30e9 < read < 0.31e9
    for config in NAMED.values():
        assert Glm5Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_configurations_need_no_torch() -> None:
    code = "import sys, tilecompile.models.registry; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"num_hidden_layers": 14, "index_topk_freq": 4, "index_skip_topk_offset": 3},
        {"num_hidden_layers": 14, "index_topk_freq": 3},
        {"index_topk_freq": 0},
        {"index_topk_pattern": "FFSS"},
        {"index_topk_pattern": ["full", "shared", "shared", "full"]},
        {"indexer_types": ["full", "shared", "full", "shared"], "index_topk_pattern": "FSFS"},
        {"indexer_types": ["full", "full", "shared", "full"], "index_topk_freq": 2},
        {"first_k_dense_replace": 9},
        {"mlp_layer_types": ["dense", "dense", "sparse", "sparse"], "first_k_dense_replace": 2},
        {"latent_norm_eps": 1e-5},
    ],
)
def test_configuration_matches_transformers(overrides: dict[str, Any]) -> None:
    theirs = GlmMoeDsaConfig(**{**SMALL, **overrides})
    ours = Glm5Config.from_dict({**BASE, **overrides})
    assert ours.indexer_types == tuple(theirs.indexer_types)
    assert ours.mlp_layer_types == tuple(theirs.mlp_layer_types)
    assert ours.qk_head_dim == theirs.qk_head_dim
    assert ours.latent_norm_eps == overrides.get("latent_norm_eps", 1e-6)


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("architectures", ["LlamaForCausalLM"], "architectures is ['LlamaForCausalLM']"),
        ("model_type", "llama", "model_type is 'llama', want 'glm_moe_dsa'"),
        ("n_group", 8, "n_group is 8, want 1"),
        ("scoring_func", "softmax", "scoring_func is 'softmax', want 'sigmoid'"),
        ("moe_layer_freq", 2, "moe_layer_freq is 2, want 1"),
        ("attention_bias", True, "attention_bias is True, want False"),
        ("hidden_act", "gelu", "hidden_act is 'gelu', want 'silu'"),
        ("rope_interleave", False, "rope_interleave is False"),
        ("num_nextn_predict_layers", 2, "num_nextn_predict_layers is 2, want 0 or 1"),
        ("num_key_value_heads", 2, "num_key_value_heads is 2, want 8"),
        ("rope_parameters", {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4}, "rope_type is 'yarn'"),
        ("rope_parameters", None, "missing rope_parameters.rope_theta"),
        ("rope_scaling", {"type": "linear", "factor": 2}, "rope_scaling.rope_type is 'linear'"),
        ("quantization_config", {"quant_method": "fp8"}, "quantization_config.quant_method is 'fp8'"),
        ("hidden_size", None, "missing hidden_size"),
        ("hidden_size", "256", "hidden_size is '256', want an integer"),
        ("index_topk", 0, "index_topk is 0"),
        ("rms_norm_eps", -1.0, "rms_norm_eps is -1.0, want a positive number"),
        ("indexer_types", ["full"] * 3, "indexer_types has 3 entries, want 4"),
        ("index_topk_pattern", "SFFF", "index_topk_pattern begins with a shared layer"),
        ("index_topk_pattern", "FXFF", "index_topk_pattern is ['full', 'X'"),
        ("qk_rope_head_dim", 7, "qk_rope_head_dim is 7, want an even number"),
        ("num_experts_per_tok", 17, "num_experts_per_tok is 17, want at most n_routed_experts (16)"),
        ("eos_token_id", [600], "eos_token_id is [600]"),
        ("tie_word_embeddings", "yes", "tie_word_embeddings is 'yes', want true or false"),
        ("model_type", "glm5_next", "model_type is 'glm5_next': GLM-5.3-Flash is another model"),
        ("text_config", {"model_type": "glm5_next"}, "model_type is 'glm5_next': GLM-5.3-Flash is another model"),
        ("rope_theta", 1e4, "rope_theta is 10000.0 and rope_parameters.rope_theta is 1000000.0: they contradict"),
        ("rope_scaling", {"rope_theta": 5}, "rope_parameters.rope_theta is 1000000.0 and rope_scaling.rope_theta is 5"),
        ("num_experts", 8, "n_routed_experts is 16 and num_experts is 8: they contradict each other"),
        ("num_local_experts", 17, "n_routed_experts is 16 and num_local_experts is 17: they contradict each other"),
        ("qk_head_dim", 33, "qk_head_dim is 33 and qk_nope_head_dim + qk_rope_head_dim is 32"),
        (
            "mlp_layer_types",
            ["dense", "sparse", "dense", "sparse"],
            "layer 2 is dense in mlp_layer_types and sparse in first_k_dense_replace 1: they contradict each other",
        ),
        ("mlp_layer_types", ["dense", "sparse"], "mlp_layer_types has 2 entries, want 4"),
    ],
)
def test_an_unsupported_configuration_is_refused_by_field(field: str, value: object, found: str) -> None:
    with pytest.raises(InputError) as error:
        read_config({**BASE, field: value}, "here/config.json")
    message = str(error.value)
    assert message.startswith("here/config.json: ")
    assert found in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"index_topk_freq": 2}, "layer 1 is shared in indexer_types and full in the schedule of index_topk_freq 2 "),
        ({"index_topk_pattern": "FFSS"}, "layer 1 is shared in indexer_types and full in index_topk_pattern"),
        ({"torch_dtype": "float32", "dtype": "bfloat16"}, "dtype is 'bfloat16' and torch_dtype is 'float32'"),
    ],
)
def test_fields_that_contradict_each_other_are_named(fields: dict[str, object], found: str) -> None:
    kinds = ["full", "shared", "full", "shared"]
    with pytest.raises(InputError, match="they contradict each other") as error:
        read_config({**BASE, "indexer_types": kinds, **fields}, "here/config.json")
    assert found in str(error.value)


def test_other_names_of_fields_are_taken_where_they_agree() -> None:
    config = read_config({**BASE, "num_experts": 16, "num_local_experts": 16, "torch_dtype": "float32"})
    assert config == Glm5Config.from_dict({**BASE, "dtype": "float32"})
    without = {key: value for key, value in BASE.items() if key not in ("n_routed_experts", "rope_parameters")}
    other = {"num_experts": 16, "rope_theta": 1e6, "index_topk_pattern": None, "index_topk_freq": 1}
    assert Glm5Config.from_dict({**without, **other}) == Glm5Config.from_dict(BASE)


# --------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("overrides", "tokens", "tolerance"),
    [
        ({"index_topk_pattern": "FFSS"}, (1, 3), 3e-5),
        (ODD, (1,), 3e-5),
        ({**ODD, **SHARED, "tie_word_embeddings": True}, (1, 3), 1e-4),
    ],
    ids=["shared", "odd", "odd-shared-tied"],
)
def test_step_agrees_with_transformers(
    overrides: dict[str, Any], tokens: tuple[int, ...], tolerance: float, tmp_path: Path
) -> None:
    """Tight enough to see a wrong epsilon of the latent norms: 4e-5, 5e-5 and 3e-4; rounding makes 0.5 to 2e-5."""
    _, model, ids, want, counted = draw(overrides, 75)
    assert 0.5 < want.std() < 2
    model.save_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    for at_once in tokens:
        got = run_eager(checkpoint.config, checkpoint, ids, at_once)
        difference = (got - want)[:counted].abs().max()
        assert difference < tolerance, f"{at_once} tokens at once: logits differ by {difference:.1e}"


@pytest.fixture(scope="module")
def with_mtp(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint with an MTP layer, and a one-layer transformers model that is this layer."""
    folder = tmp_path_factory.mktemp("mtp")
    sizes = {**ODD, "num_hidden_layers": 2}
    config, model = make_model({**sizes, "num_nextn_predict_layers": 1}, 1)
    _, layer = make_model({**sizes, "num_hidden_layers": 1, "first_k_dense_replace": 0}, 2)
    model.save_pretrained(folder)
    layer.save_pretrained(folder / "layer")
    tensors = load_file(folder / "model.safetensors")
    layer.lm_head.weight.copy_(tensors["lm_head.weight"])
    for name, tensor in load_file(folder / "layer" / "model.safetensors").items():
        if name.startswith("model.layers.0."):
            tensors[name.replace("layers.0.", "layers.2.")] = tensor
    hidden, generator = config["hidden_size"], torch.Generator().manual_seed(3)
    tensors["model.layers.2.shared_head.norm.weight"] = layer.model.norm.weight.clone()
    tensors["model.layers.2.enorm.weight"] = 1 + 0.1 * torch.randn(hidden, generator=generator)
    tensors["model.layers.2.hnorm.weight"] = 1 + 0.1 * torch.randn(hidden, generator=generator)
    eh_proj = torch.randn(hidden, 2 * hidden, generator=generator) * (2 * hidden) ** -0.5
    tensors["model.layers.2.eh_proj.weight"] = eh_proj
    save_file(tensors, folder / "model.safetensors")
    return folder, layer


def test_mtp_step_agrees_with_transformers(with_mtp: tuple[Path, Any]) -> None:
    folder, layer = with_mtp
    checkpoint = Checkpoint(folder)
    assert checkpoint.config.mtp_layer == 2
    assert not checkpoint.notes
    extend = MtpStep(checkpoint.config, Storage(64), 2, Steps(2, 1), extend=True)
    draft = MtpStep(checkpoint.config, Storage(64))
    for step in (extend, draft):
        load(step, checkpoint)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, checkpoint.config.vocab_size, (60,), generator=generator, dtype=torch.int32)
    hidden = torch.randn(60, checkpoint.config.hidden_size, generator=generator)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, x.shape[-1:], tensors[f"model.layers.2.{name}.weight"], 1e-5)

    both = torch.cat([norm(tensors["model.embed_tokens.weight"][ids.long()], "enorm"), norm(hidden, "hnorm")], 1)
    want, near = teacher_forced(layer, both @ tensors["model.layers.2.eh_proj.weight"].T)
    assert near is None
    with torch.inference_mode():
        for start in range(0, 60, 2):
            now, position = slice(start, start + 2), torch.tensor([start], dtype=torch.int32)
            extend.model.hidden.copy_(hidden[now])
            logits, following = extend(ids[now], position)
            assert (logits - want[start + 1]).abs().max() < 1e-4
            assert torch.equal(following, logits.argmax(-1).int())
            assert torch.allclose(extend.model.draft_hidden @ tensors["lm_head.weight"].T, logits, atol=1e-5)
        for start in range(60):  # the same layer, a token a step, with the hidden row that it is given as its own
            draft.model.draft_hidden.copy_(hidden[start : start + 1])
            logits, _ = draft(ids[start : start + 1], torch.tensor([start], dtype=torch.int32))
            assert (logits - want[start]).abs().max() < 1e-4
            assert torch.allclose(draft.model.draft_hidden @ tensors["lm_head.weight"].T, logits, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- export


def export(config: Glm5Config, tokens: int) -> torch.export.ExportedProgram:
    """Exports the main step on the meta device, as the trace pass does."""
    with torch.device("meta"):
        step = Glm5Step(config, Storage(4096, weights="bf16"), tokens)
        ids = torch.zeros(tokens, dtype=torch.int32)
        return torch.export.export(step, (ids, torch.zeros(1, dtype=torch.int32)), strict=False)


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_step_exports_to_the_ops_it_is_written_in(tokens: int) -> None:
    config = NAMED["glm5-mini"]
    ops = [str(node.target) for node in export(config, tokens).graph.nodes if node.op == "call_function"]
    assert ops.count("tilecompile.mla_attention.default") == 14
    assert ops.count("tilecompile.cache_append.default") == 3 * 14
    plain = {op for op in ops if op.startswith("aten.")}
    assert {"aten.add.Tensor", "aten.mul.Tensor", "aten.silu.default"} <= plain
    views = {"aten.view.default", "aten.reshape.default", "aten.split_with_sizes.default"}
    assert plain <= {"aten.add.Tensor", "aten.mul.Tensor", "aten.silu.default"} | views
    with torch.device("meta"):
        step = MtpStep(config, Storage(4096), tokens, Steps(tokens, tokens - 1), extend=True)
        ids, position = torch.zeros(tokens, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        torch.export.export(step, (ids, position), strict=False)


def test_a_full_size_step_exports() -> None:
    begin = time.perf_counter()
    ops = [str(node.target) for node in export(NAMED["glm-5"], 1).graph.nodes]
    print(f"GLM-5 exported in {time.perf_counter() - begin:.1f} s")
    assert ops.count("tilecompile.mla_attention.default") == 78


# ------------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("name", ["glm5-mini", "glm-5.2"])
def test_parameter_table_is_the_steps_parameters(name: str) -> None:
    with torch.device("meta"):
        steps = [Glm5Step(NAMED[name], Storage(16)), MtpStep(NAMED[name], Storage(16, draft_head="bf16"))]
    shapes = {key: tuple(p.shape) for step in steps for key, p in step.named_parameters()}
    assert shapes == {key: p.shape for key, p in parameters(NAMED[name]).items()}
    assert [key for key, _ in steps[0].named_buffers() if not key.endswith("_cache")] == [INV_FREQ]


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


# ---------------------------------------------------------------------------------------------------- drawn weights


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
