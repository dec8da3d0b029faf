"""transformers' model of a configuration, on the weights that an engine was compiled from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GlmMoeDsaConfig, GlmMoeDsaForCausalLM
from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa as glm

from tilecompile.errors import InputError
from tilecompile.models.checkpoint import Checkpoint, DrawnWeights, Weights
from tilecompile.models.config import Glm5Config

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def open_weights(job: dict[str, Any]) -> Weights:
    """The weights of a job (`peers.weights_job`). InputError if they can't be read."""
    config = Glm5Config.from_dict(job["config"])
    return Checkpoint(job["folder"]) if "folder" in job else DrawnWeights(config, job["seed"])


def transformers_config(config: Glm5Config) -> GlmMoeDsaConfig:
    """The same configuration as transformers has it; the MTP layer, which it doesn't run, left out."""
    ours = {"architectures", "model_type", "latent_norm_eps", "index_norm_eps", "dtype", "num_nextn_predict_layers"}
    values = {key: value for key, value in config.to_dict().items() if key not in ours}
    heads = config.num_attention_heads
    return GlmMoeDsaConfig(
        **values, num_key_value_heads=heads, pad_token_id=None, bos_token_id=None, dtype=DTYPES[config.weight_type]
    )


def build(weights: Weights, stored: torch.dtype, dtype: torch.dtype, device: str = "cpu") -> GlmMoeDsaForCausalLM:
    """The model in evaluation mode on a device, computing in `dtype`, on weights as the engine has them.

    The engine stores matrices as `stored` (rounded to nearest even), norms and biases as f32; so a model in f32
    computes with the engine's own values.
    """
    config = weights.config
    with torch.device("meta"):
        model: GlmMoeDsaForCausalLM = GlmMoeDsaForCausalLM(transformers_config(config))
    torch.nn.Module.to(model, dtype)
    model.to_empty(device=device).train(False).requires_grad_(False)
    model.model.rotary_emb = glm.GlmMoeDsaRotaryEmbedding(model.config).to(device)  # its table is computed, not loaded
    for module in model.modules():
        if isinstance(module, glm.GlmMoeDsaAttention):
            module.q_a_layernorm.variance_epsilon = config.latent_norm_eps
            module.kv_a_layernorm.variance_epsilon = config.latent_norm_eps
            if module.indexer is not None:
                module.indexer.k_norm.eps = config.index_norm_eps
        elif isinstance(module, glm.GlmMoeDsaTopkRouter):
            module.e_score_correction_bias = torch.nn.Buffer(module.e_score_correction_bias.float())
    model.set_experts_implementation("batched_mm")  # the default, grouped_mm, takes multiples of 16 bytes only
    fill(model, weights, stored)
    return model


def fill(model: GlmMoeDsaForCausalLM, weights: Weights, stored: torch.dtype) -> None:
    """Writes the weights into a model's parameters, in the parameters' dtypes."""

    def read(name: str) -> Tensor:
        matrix = len(weights.parameters[name].shape) > 1
        return weights.full(name, stored if matrix else torch.float32)

    targets: dict[str, Tensor] = dict(model.named_parameters())
    targets |= {n: b for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")}
    for name, target in targets.items():
        target.copy_(_value(name, read))


def _value(name: str, read: Callable[[str], Tensor]) -> Tensor:
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


def need_memory(job: dict[str, Any], copies: float) -> None:
    """InputError unless the machine has room for `copies` of the model's weights in f32."""
    from tilecompile.runtime.machine import free_memory

    want = int(copies * 4 * Glm5Config.from_dict(job["config"]).parameter_count())
    free = free_memory()
    if free is not None and want > free:
        raise InputError(f"the model needs about {want} bytes of memory in f32, the machine has {free} free")


def need_gpu_memory(job: dict[str, Any]) -> None:
    """InputError unless the GPU has room for the model's weights in bf16, and a tenth more for what steps take."""
    want = int(1.1 * 2 * Glm5Config.from_dict(job["config"]).parameter_count())
    free, _ = torch.cuda.mem_get_info()
    if want > free:
        raise InputError(f"the model needs about {want} bytes of GPU memory in bf16, the GPU has {free} free")


def versions() -> dict[str, str]:
    """Versions of the packages that compute."""
    import transformers

    return {"torch": str(torch.__version__), "transformers": str(transformers.__version__)}
