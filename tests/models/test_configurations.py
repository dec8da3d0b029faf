"""Configurations of models: published ones, those of transformers, and those that are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from transformers import GlmMoeDsaConfig

from support.checkpoints import BASE
from support.reference import SMALL
from tilecompile.models.glm5.config import Glm5Config
from tilecompile.models.registry import NAMED, read_config
from tilecompile.runtime.errors import InputError


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
