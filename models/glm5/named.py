"""Named model configurations: the published GLM-5 models, and a small one with the same structure for one machine."""

from __future__ import annotations

from typing import Any

from tilecompile.models.glm5.config import Glm5Config

_GLM5: dict[str, Any] = {
    "architectures": ["GlmMoeDsaForCausalLM"],
    "model_type": "glm_moe_dsa",
    "vocab_size": 154880,
    "hidden_size": 6144,
    "num_hidden_layers": 78,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "q_lora_rank": 2048,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "v_head_dim": 256,
    "index_n_heads": 32,
    "index_head_dim": 128,
    "index_topk": 2048,
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
    "max_position_embeddings": 202752,
    "intermediate_size": 12288,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "routed_scaling_factor": 2.5,
    "rms_norm_eps": 1e-5,
    "num_nextn_predict_layers": 1,
    "eos_token_id": [154820, 154827, 154829],
}

_GLM5_2: dict[str, Any] = {
    **_GLM5,
    "max_position_embeddings": 1048576,
    "rope_parameters": {"rope_theta": 8000000, "rope_type": "default"},
    "index_topk_freq": 4,
    "index_skip_topk_offset": 3,
    "index_share_for_mtp_iteration": True,
}

_GLM5_MINI: dict[str, Any] = {
    **_GLM5,
    "vocab_size": 32000,
    "hidden_size": 1536,
    "num_hidden_layers": 14,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "q_lora_rank": 512,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 96,
    "qk_rope_head_dim": 32,
    "v_head_dim": 128,
    "index_n_heads": 8,
    "index_head_dim": 64,
    "index_topk": 512,
    "max_position_embeddings": 16384,
    "intermediate_size": 4096,
    "moe_intermediate_size": 384,
    "first_k_dense_replace": 1,
    "n_routed_experts": 48,
    "num_experts_per_tok": 6,
    "eos_token_id": [],
}

NAMED: dict[str, Glm5Config] = {
    name: Glm5Config.from_dict(values, name)
    for name, values in (
        ("glm-5", _GLM5),
        ("glm-5.1", _GLM5),
        ("glm-5.2", _GLM5_2),
        ("glm-5.3", _GLM5_2),
        ("glm5-mini", _GLM5_MINI),
    )
}
"""Configurations by the name that the command line takes; glm5-mini has no published weights (they are drawn)."""
