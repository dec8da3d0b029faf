"""The configuration of a GLM-5 model (`glm_moe_dsa`), read from a Hugging Face `config.json` and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from tilecompile.models.fields import agreed, check_only, check_stored, plain_fields, refuse
from tilecompile.models.glm5.layers import indexer_types, mlp_layer_types
from tilecompile.models.spec import Figures, LayerKind
from tilecompile.runtime.errors import InputError

ARCHITECTURE = "GlmMoeDsaForCausalLM"
MODEL_TYPE = "glm_moe_dsa"

LEAST = {"num_nextn_predict_layers": 0}
"""Fields that may be less than 1."""

ALIASES = {"n_routed_experts": ("num_experts", "num_local_experts"), "dtype": ("torch_dtype",)}
"""Other names of fields in files that some tools write."""


@dataclass(frozen=True)
class Glm5Config:
    """Sizes and constants of one model. Names are those of `config.json` where the field exists there.

    `indexer_types[layer]` is "full" (the layer selects positions with its own indexer) or "shared" (it reuses the last
    full layer's selection); `mlp_layer_types[layer]` is "dense" or "sparse" (a mixture of experts).
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    intermediate_size: int
    moe_intermediate_size: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    routed_scaling_factor: float
    rms_norm_eps: float
    max_position_embeddings: int
    rope_theta: float
    indexer_types: tuple[str, ...]
    mlp_layer_types: tuple[str, ...]
    norm_topk_prob: bool = True
    tie_word_embeddings: bool = False
    num_nextn_predict_layers: int = 0
    index_share_for_mtp_iteration: bool = False
    eos_token_id: tuple[int, ...] = ()
    latent_norm_eps: float = 1e-6
    """Epsilon of `q_a_layernorm` and `kv_a_layernorm`; transformers uses 1e-6, whatever `rms_norm_eps` is."""
    index_norm_eps: float = 1e-6
    """Epsilon of the indexer's `k_norm`."""
    dtype: str = "bfloat16"
    """Type of the checkpoint's matrices as the configuration states it: bfloat16, float16 or float32."""

    @property
    def architecture(self) -> str:
        """The architecture as `config.json` names it."""
        return ARCHITECTURE

    @property
    def weight_type(self) -> str:
        """The weight type that keeps the checkpoint's values: `bf16`, or `f32` for all else."""
        return "bf16" if self.dtype == "bfloat16" else "f32"

    @property
    def qk_head_dim(self) -> int:
        """Width of one attention head's query and key: the part without position and the rotated part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def kv_width(self) -> int:
        """Width of a cache row: the latent and the rotated key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def shared_intermediate_size(self) -> int:
        """Width of the shared experts, which are one MLP."""
        return self.moe_intermediate_size * self.n_shared_experts

    @property
    def attention_scale(self) -> float:
        """Factor on the attention scores."""
        return float(self.qk_head_dim**-0.5)

    @property
    def index_scale(self) -> float:
        """Factor on the indexer's head weights: its scores' 1/sqrt(head width) and its weights' 1/sqrt(heads)."""
        return float(self.index_head_dim**-0.5 * self.index_n_heads**-0.5)

    @property
    def mtp_layer(self) -> int | None:
        """Number of the layer that predicts a further token, if the model has one."""
        return self.num_hidden_layers if self.num_nextn_predict_layers else None

    @property
    def layers(self) -> tuple[LayerKind, ...]:
        """The kind of each layer. A layer without an indexer uses what an earlier one has selected."""
        kinds = zip(self.mlp_layer_types, self.indexer_types, strict=True)
        return tuple(LayerKind(f"{mlp}, {indexer}", indexer == "full") for mlp, indexer in kinds)

    def with_layers(self, layers: Sequence[int]) -> Self:
        """The configuration of the model that has only these layers."""
        return dataclasses.replace(
            self,
            num_hidden_layers=len(layers),
            mlp_layer_types=tuple(self.mlp_layer_types[i] for i in layers),
            indexer_types=tuple(self.indexer_types[i] for i in layers),
        )

    @property
    def figures(self) -> Figures:
        """The main figures, without the MTP layer. A token reads a row of the embedding table, which doesn't count."""
        read = self.parameter_count(self.num_experts_per_tok) - self.vocab_size * self.hidden_size
        sizes = (self.num_hidden_layers, self.hidden_size, self.n_routed_experts, self.num_experts_per_tok)
        return Figures(self.parameter_count(), read, *sizes)

    def parameter_count(self, experts: int | None = None) -> int:
        """Parameters of the main model (without the MTP layer), with `experts` routed experts a layer.

        With `experts=num_experts_per_tok` the matrices that one token reads, plus the embedding table.
        """
        hidden, heads = self.hidden_size, self.num_attention_heads
        experts = self.n_routed_experts if experts is None else experts
        attention = hidden * (self.q_lora_rank + self.kv_width) + self.q_lora_rank * heads * self.qk_head_dim
        attention += heads * (self.qk_nope_head_dim + self.v_head_dim) * self.kv_lora_rank
        attention += heads * self.v_head_dim * hidden + self.q_lora_rank + self.kv_lora_rank + 2 * hidden
        indexer = self.q_lora_rank * self.index_n_heads * self.index_head_dim
        indexer += hidden * (self.index_head_dim + self.index_n_heads) + 2 * self.index_head_dim
        sparse = (hidden + 1) * self.n_routed_experts
        sparse += 3 * hidden * (experts * self.moe_intermediate_size + self.shared_intermediate_size)
        count = self.vocab_size * hidden * (1 if self.tie_word_embeddings else 2) + hidden
        for kind, mlp in zip(self.indexer_types, self.mlp_layer_types, strict=True):
            count += attention + (indexer if kind == "full" else 0)
            count += sparse if mlp == "sparse" else 3 * hidden * self.intermediate_size
        return count

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; `from_dict` reads them back."""
        values = dataclasses.asdict(self)
        values["rope_parameters"] = {"rope_theta": values.pop("rope_theta"), "rope_type": "default"}
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return {"architectures": [ARCHITECTURE], "model_type": MODEL_TYPE, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config") -> Self:
        """The configuration from a `config.json`'s values; whatever the model side doesn't support is an InputError."""
        values = {key: value for key, value in values.items() if value is not None}
        _refuse_unsupported(values, source)
        for field, others in ALIASES.items():
            if (value := agreed({name: values.get(name) for name in (field, *others)}, source)) is not None:
                values[field] = value
        values["rope_theta"] = _rope_theta(values, source)
        eos = values.get("eos_token_id", ())
        values["eos_token_id"] = [eos] if isinstance(eos, int) else eos
        kept = plain_fields(cls, values, source, derived=("indexer_types", "mlp_layer_types"), least=LEAST)
        layers = kept["num_hidden_layers"]
        config = cls(
            **kept,
            indexer_types=indexer_types(values, layers, source),
            mlp_layer_types=mlp_layer_types(values, layers, source),
        )
        width = {"qk_head_dim": values.get("qk_head_dim"), "qk_nope_head_dim + qk_rope_head_dim": config.qk_head_dim}
        agreed(width, source)
        _check_sizes(config, source)
        return config


def _refuse_unsupported(values: Mapping[str, Any], source: str) -> None:
    if values.get("model_type") != MODEL_TYPE:
        raise refuse(source, "model_type", values.get("model_type"), repr(MODEL_TYPE))
    check_stored(values, source)
    only: dict[str, tuple[Any, ...]] = {
        "n_group": (1,),
        "topk_group": (1,),
        "moe_layer_freq": (1,),
        "scoring_func": ("sigmoid",),
        "topk_method": ("noaux_tc",),
        "moe_router_dtype": ("float32",),
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "rope_interleave": (True,),
        "indexer_rope_interleave": (True,),
        "num_nextn_predict_layers": (0, 1),
        "num_key_value_heads": (values.get("num_attention_heads"),),
    }
    check_only(values, only, source)


def _rope_theta(values: Mapping[str, Any], source: str) -> Any:
    """The base of the rotation frequencies, from `rope_parameters`, `rope_scaling` or the top level."""
    stated = {"rope_theta": values.get("rope_theta")}
    for field in ("rope_parameters", "rope_scaling"):
        rope = values.get(field, {})
        if not isinstance(rope, dict):
            raise refuse(source, field, rope, "an object")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise refuse(source, f"{field}.rope_type", kind, "'default'")
        for key in ("factor", "attention_factor"):
            if rope.get(key, 1) != 1:
                raise refuse(source, f"{field}.{key}", rope[key], "no scaling")
        stated[f"{field}.rope_theta"] = rope.get("rope_theta")
    if (theta := agreed(stated, source)) is None:
        raise InputError(f"{source}: missing rope_parameters.rope_theta")
    return theta


def _check_sizes(config: Glm5Config, source: str) -> None:
    if config.qk_rope_head_dim % 2:
        raise refuse(source, "qk_rope_head_dim", config.qk_rope_head_dim, "an even number")
    if config.index_head_dim < config.qk_rope_head_dim:
        required = f"at least qk_rope_head_dim ({config.qk_rope_head_dim})"
        raise refuse(source, "index_head_dim", config.index_head_dim, required)
    if config.n_routed_experts < config.num_experts_per_tok:
        required = f"at most n_routed_experts ({config.n_routed_experts})"
        raise refuse(source, "num_experts_per_tok", config.num_experts_per_tok, required)
    if any(not 0 <= token < config.vocab_size for token in config.eos_token_id):
        required = f"token ids below vocab_size ({config.vocab_size})"
        raise refuse(source, "eos_token_id", list(config.eos_token_id), required)
