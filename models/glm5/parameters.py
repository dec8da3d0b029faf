"""GLM-5's parameters: what a checkpoint calls them, and how they are drawn where there is no checkpoint."""

from __future__ import annotations

import dataclasses

from tilecompile.models.glm5.config import Glm5Config
from tilecompile.models.spec import Parameter, Window

INV_FREQ = "model.inv_freq"
"""The only table of a step that checkpoints don't contain."""


def parameters(config: Glm5Config) -> dict[str, Parameter]:
    """Every parameter of the model's steps by name, with the MTP layer's where the model has one."""
    c = config
    table: dict[str, Parameter] = {}

    def plain(name: str, *shape: int, tensor: str | None = None) -> None:
        table[name] = Parameter(shape, (Window(tensor or name, shape),))

    def mlp(prefix: str, intermediate: int) -> None:
        plain(f"{prefix}.gate_proj.weight", intermediate, c.hidden_size)
        plain(f"{prefix}.up_proj.weight", intermediate, c.hidden_size)
        plain(f"{prefix}.down_proj.weight", c.hidden_size, intermediate)

    plain("model.embed_tokens.weight", c.vocab_size, c.hidden_size)
    head = "model.embed_tokens.weight" if c.tie_word_embeddings else "lm_head.weight"
    plain("lm_head.weight", c.vocab_size, c.hidden_size, tensor=head)
    if c.mtp_layer is not None:
        plain("draft_head.weight", c.vocab_size, c.hidden_size, tensor=head)  # only where drafts have a copy
    plain("model.norm.weight", c.hidden_size)
    for layer in range(c.num_hidden_layers + (c.mtp_layer is not None)):
        prefix = f"model.layers.{layer}"
        attn, extra = f"{prefix}.self_attn", layer == c.mtp_layer
        plain(f"{prefix}.input_layernorm.weight", c.hidden_size)
        plain(f"{prefix}.post_attention_layernorm.weight", c.hidden_size)
        plain(f"{attn}.q_a_proj.weight", c.q_lora_rank, c.hidden_size)
        plain(f"{attn}.q_a_layernorm.weight", c.q_lora_rank)
        plain(f"{attn}.q_b_proj.weight", c.num_attention_heads * c.qk_head_dim, c.q_lora_rank)
        plain(f"{attn}.kv_a_proj_with_mqa.weight", c.kv_width, c.hidden_size)
        plain(f"{attn}.kv_a_layernorm.weight", c.kv_lora_rank)
        plain(f"{attn}.o_proj.weight", c.hidden_size, c.num_attention_heads * c.v_head_dim)
        # kv_b_proj holds, head after head, the rows that make keys from the latent and those that make values.
        rows = c.qk_nope_head_dim + c.v_head_dim
        kv_b = Window(f"{attn}.kv_b_proj.weight", (c.num_attention_heads * rows, c.kv_lora_rank))
        keys = tuple(dataclasses.replace(kv_b, row=h * rows, transposed=True) for h in range(c.num_attention_heads))
        values = tuple(dataclasses.replace(w, row=w.row + c.qk_nope_head_dim, transposed=False) for w in keys)
        table[f"{attn}.w_uk"] = Parameter((c.num_attention_heads, c.kv_lora_rank, c.qk_nope_head_dim), keys)
        table[f"{attn}.w_uv"] = Parameter((c.num_attention_heads, c.v_head_dim, c.kv_lora_rank), values)
        if extra or c.indexer_types[layer] == "full":
            plain(f"{attn}.indexer.wq_b.weight", c.index_n_heads * c.index_head_dim, c.q_lora_rank)
            plain(f"{attn}.indexer.wk.weight", c.index_head_dim, c.hidden_size)
            plain(f"{attn}.indexer.k_norm.weight", c.index_head_dim)
            plain(f"{attn}.indexer.k_norm.bias", c.index_head_dim)
            plain(f"{attn}.indexer.weights_proj.weight", c.index_n_heads, c.hidden_size)
        if not extra and c.mlp_layer_types[layer] == "dense":
            mlp(f"{prefix}.mlp", c.intermediate_size)
        else:
            plain(f"{prefix}.mlp.gate.weight", c.n_routed_experts, c.hidden_size)
            plain(f"{prefix}.mlp.gate.e_score_correction_bias", c.n_routed_experts)
            mlp(f"{prefix}.mlp.shared_experts", c.shared_intermediate_size)
            for part in ("gate_proj", "up_proj", "down_proj"):
                shape = (c.moe_intermediate_size, c.hidden_size)
                shape = shape[::-1] if part == "down_proj" else shape
                names = (f"{prefix}.mlp.experts.{e}.{part}.weight" for e in range(c.n_routed_experts))
                stack = Parameter((c.n_routed_experts, *shape), tuple(Window(name, shape) for name in names))
                table[f"{prefix}.mlp.experts.{part}.weight"] = stack
        if extra:
            for name in ("enorm", "hnorm", "shared_head.norm"):
                plain(f"{prefix}.{name}.weight", c.hidden_size)
            for half, name in enumerate(("embed", "hidden")):
                window = Window(f"{prefix}.eh_proj.weight", (c.hidden_size, 2 * c.hidden_size), 0, half * c.hidden_size)
                table[f"{prefix}.eh_proj_{name}.weight"] = Parameter((c.hidden_size, c.hidden_size), (window,))
    return table


def joined_experts(config: Glm5Config) -> dict[str, Window]:
    """Where experts' matrices are if a checkpoint has those of a layer in two tensors: `gate_up_proj` [experts, 2 ×
    width, hidden], gate first, and `down_proj` [experts, hidden, width]."""
    c = config
    count, width, hidden = c.n_routed_experts, c.moe_intermediate_size, c.hidden_size
    both, down = (count, 2 * width, hidden), (count, hidden, width)
    found = {}
    for layer in range(c.num_hidden_layers + (c.mtp_layer is not None)):
        prefix = f"model.layers.{layer}.mlp.experts"
        for e in range(count if layer == c.mtp_layer or c.mlp_layer_types[layer] == "sparse" else 0):
            found[f"{prefix}.{e}.gate_proj.weight"] = Window(f"{prefix}.gate_up_proj", both, matrix=e)
            found[f"{prefix}.{e}.up_proj.weight"] = Window(f"{prefix}.gate_up_proj", both, row=width, matrix=e)
            found[f"{prefix}.{e}.down_proj.weight"] = Window(f"{prefix}.down_proj", down, matrix=e)
    return found


def spread(config: Glm5Config, tensor: str, cols: int) -> tuple[float, float]:
    """Mean and standard deviation of a drawn tensor. They are such that

    - the embedding (unless it is the lm_head too) and every product with a normed input have unit variance (variance
      1/columns), hence queries, keys, router logits and logits are of order 1, index scores spread around 0, and
      experts are chosen evenly;
    - attention scores have a deviation of 2 (`q_b_proj`): a few dozen of the selected positions carry the weight, so
      a wrong position shows in the logits;
    - the 2·layers branches that are added to the residual stream together add about its own variance (`o_proj` and
      `down_proj`), so depth doesn't blow it up and each branch still counts;
    - norm weights, norm biases and the router's bias differ enough from 1 and 0 that leaving one out shows.
    """
    if tensor.endswith("e_score_correction_bias"):
        return 0.0, 0.02
    if tensor.endswith("k_norm.bias"):
        return 0.0, 0.1
    if "norm" in tensor.rsplit(".", 2)[1]:
        return 1.0, 0.1
    if tensor == "model.embed_tokens.weight":
        return 0.0, float(cols**-0.5) if config.tie_word_embeddings else 1.0
    gain = 1.0
    if tensor.endswith((".o_proj.weight", ".down_proj.weight")):
        # silu(gate)·up of unit normals has a deviation of 0.6, the attended values about 0.2 to 1.
        gain = 2.0 * float((2 * config.num_hidden_layers) ** -0.5)
    elif tensor.endswith(".q_b_proj.weight"):
        gain = 2.0
    return 0.0, gain * float(cols**-0.5)
