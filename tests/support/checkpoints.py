"""Configurations of small models for the tests of models."""

from __future__ import annotations

from typing import Any

from support.reference import SMALL

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
