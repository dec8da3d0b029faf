"""transformers' GLM-5, as the peers that an engine is compared with run it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import GlmMoeDsaConfig, GlmMoeDsaForCausalLM
from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa as glm

from tilecompile.models.glm5.config import Glm5Config
from tilecompile.models.spec import PeerModel
from tilecompile.ops.dtypes import torch_dtype

OURS = {"architectures", "model_type", "latent_norm_eps", "index_norm_eps", "dtype", "num_nextn_predict_layers"}
"""Fields that transformers' configuration doesn't have, or takes in another form. It doesn't run the MTP layer."""


def make(config: Glm5Config) -> GlmMoeDsaForCausalLM:
    """transformers' model of a configuration."""
    values = {key: value for key, value in config.to_dict().items() if key not in OURS}
    values["num_key_value_heads"] = config.num_attention_heads
    dtype = torch_dtype(config.weight_type)
    return GlmMoeDsaForCausalLM(GlmMoeDsaConfig(**values, pad_token_id=None, bos_token_id=None, dtype=dtype))


def prepare(model: GlmMoeDsaForCausalLM, config: Glm5Config) -> None:
    """Sets the epsilons and the table of rotations, and keeps the routers' biases in f32."""
    device = next(model.parameters()).device
    model.model.rotary_emb = glm.GlmMoeDsaRotaryEmbedding(model.config).to(device)  # its table is computed, not loaded
    for module in model.modules():
        if isinstance(module, glm.GlmMoeDsaAttention):
            module.q_a_layernorm.variance_epsilon = config.latent_norm_eps
            module.kv_a_layernorm.variance_epsilon = config.latent_norm_eps
            if module.indexer is not None:
                module.indexer.k_norm.eps = config.index_norm_eps
        elif isinstance(module, glm.GlmMoeDsaTopkRouter):
            module.e_score_correction_bias = torch.nn.Buffer(module.e_score_correction_bias.float())


def value(name: str, read: Callable[[str], Tensor]) -> Tensor:
    """The value of a parameter of transformers' model."""
    prefix, _, last = name.rpartition(".")
    if name.endswith(".kv_b_proj.weight"):
        attention = prefix.removesuffix(".kv_b_proj")
        both = torch.cat([read(f"{attention}.w_uk").transpose(1, 2), read(f"{attention}.w_uv")], dim=1)
        return both.flatten(0, 1)
    if last == "gate_up_proj":
        return torch.cat([read(f"{prefix}.gate_proj.weight"), read(f"{prefix}.up_proj.weight")], dim=1)
    if prefix.endswith(".experts"):
        return read(f"{name}.weight")
    return read(name)


PEER = PeerModel(make, prepare, value, buffers=("e_score_correction_bias",))
