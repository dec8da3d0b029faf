"""One decode step of GLM-5, written in tile ops: the program that the compiler traces.

GLM-5 is a decoder with latent attention (MLA) over positions that an indexer selects (DeepSeek Sparse Attention), and a
mixture of experts. A step takes T tokens at consecutive positions, the first at `position`, appends them to the caches
and returns the logits after each. Between tile ops stand only elementwise operators and views that keep dimension 0,
the tokens. Nothing depends on data in Python, so a step traces on the meta device without weights.

Modules and parameters are named as in the published checkpoints. Where the layout differs (`w_uk`, `w_uv`, stacked
experts, `eh_proj_*`), `checkpoint.py` says how to cut the checkpoint's tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tilecompile import ops
from tilecompile.models.config import Glm5Config


def _weight(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


@dataclass(frozen=True)
class Storage:
    """How large the caches are, and in what dtypes caches and matrices are kept (norms and biases are f32)."""

    max_seq_len: int
    cache_dtype: torch.dtype
    weight_dtype: torch.dtype

    @property
    def exact_dtype(self) -> torch.dtype:
        """The type of matrices that stay in bf16 where others are fp8, as in the published checkpoints."""
        return torch.bfloat16 if self.weight_dtype is torch.float8_e4m3fn else self.weight_dtype


class Matrix(nn.Module):
    """A matrix [rows, cols], a stack of them [experts, rows, cols] or a table; called, the product with a matrix."""

    def __init__(self, *shape: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = _weight(*shape, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, cols] -> [T, rows]."""
        y: Tensor = ops.linear(x, self.weight)
        return y


class RmsNorm(nn.Module):
    """Root-mean-square norm of each token."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = _weight(width)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [T, width] -> [T, width]."""
        y: Tensor = ops.rms_norm(x, self.weight, self.eps)
        return y


class LayerNorm(nn.Module):
    """Layer norm of each token, with bias."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = _weight(width)
        self.bias = _weight(width)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [T, width] -> [T, width]."""
        y: Tensor = ops.layer_norm(x, self.weight, self.bias, self.eps)
        return y


class Indexer(nn.Module):
    """Selects the positions that attention looks at: the best `index_topk` by a small attention of its own."""

    index_cache: Tensor

    def __init__(self, c: Glm5Config, s: Storage) -> None:
        super().__init__()
        self.heads, self.width, self.topk, self.scale = c.index_n_heads, c.index_head_dim, c.index_topk, c.index_scale
        self.wq_b = Matrix(self.heads * self.width, c.q_lora_rank, dtype=s.weight_dtype)
        self.wk = Matrix(self.width, c.hidden_size, dtype=s.weight_dtype)
        self.k_norm = LayerNorm(self.width, c.index_norm_eps)
        self.weights_proj = Matrix(self.heads, c.hidden_size, dtype=s.exact_dtype)
        cache = torch.zeros(s.max_seq_len, self.width, dtype=s.cache_dtype)
        self.register_buffer("index_cache", cache, persistent=False)

    def forward(self, h: Tensor, q_latent: Tensor, angles: Tensor, position: Tensor) -> Tensor:
        """h [T, hidden], q_latent [T, q_lora_rank] -> positions i32 [T, index_topk], -1 where there are fewer."""
        tokens = h.shape[0]
        key = self.k_norm(self.wk(h)).view(tokens, 1, self.width)
        key = ops.rope(key, angles).view(tokens, self.width)
        ops.cache_append(self.index_cache, key, position, 0)
        query = ops.rope(self.wq_b(q_latent).view(tokens, self.heads, self.width), angles)
        head_weight = self.weights_proj(h) * self.scale
        score = ops.index_score(query, head_weight, self.index_cache, position, self.topk)
        selection: Tensor = ops.topk_select(score, position, self.topk)
        return selection


class Attention(nn.Module):
    """Multi-head latent attention in its absorbed form: all heads attend to one latent and one rotated key a position.

    A head's key is W_UK·latent, so its score is (W_UKᵀ·q)·latent: `w_uk` moves the query into the latent space once and
    the cache keeps latents only. `w_uv` takes the attended latent to the head's values.
    """

    kv_cache: Tensor

    def __init__(self, c: Glm5Config, s: Storage, indexer: bool) -> None:
        super().__init__()
        self.heads, self.nope, self.rope = c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim
        self.latent, self.value, self.scale = c.kv_lora_rank, c.v_head_dim, c.attention_scale
        self.q_a_proj = Matrix(c.q_lora_rank, c.hidden_size, dtype=s.weight_dtype)
        self.q_a_layernorm = RmsNorm(c.q_lora_rank, c.latent_norm_eps)
        self.q_b_proj = Matrix(self.heads * c.qk_head_dim, c.q_lora_rank, dtype=s.weight_dtype)
        self.kv_a_proj_with_mqa = Matrix(c.kv_width, c.hidden_size, dtype=s.weight_dtype)
        self.kv_a_layernorm = RmsNorm(self.latent, c.latent_norm_eps)
        self.w_uk = _weight(self.heads, self.latent, self.nope, dtype=s.weight_dtype)
        self.w_uv = _weight(self.heads, self.value, self.latent, dtype=s.weight_dtype)
        self.o_proj = Matrix(c.hidden_size, self.heads * self.value, dtype=s.weight_dtype)
        self.indexer = Indexer(c, s) if indexer else None
        cache = torch.zeros(s.max_seq_len, c.kv_width, dtype=s.cache_dtype)
        self.register_buffer("kv_cache", cache, persistent=False)

    def forward(
        self, h: Tensor, angles: Tensor, position: Tensor, selection: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """h [T, hidden] -> [T, hidden] and the selection that was used, for the next layers that share it."""
        tokens = h.shape[0]
        q_latent = self.q_a_layernorm(self.q_a_proj(h))
        query = self.q_b_proj(q_latent).view(tokens, self.heads, self.nope + self.rope)
        q_nope, q_rope = query.split([self.nope, self.rope], dim=2)
        q_absorbed = ops.head_linear(q_nope, self.w_uk)
        q_rope = ops.rope(q_rope, angles)

        kv, k_rope = self.kv_a_proj_with_mqa(h).split([self.latent, self.rope], dim=1)
        k_rope = ops.rope(k_rope.view(tokens, 1, self.rope), angles).view(tokens, self.rope)
        ops.cache_append(self.kv_cache, self.kv_a_layernorm(kv), position, 0)
        ops.cache_append(self.kv_cache, k_rope, position, self.latent)

        if self.indexer is not None:
            selection = self.indexer(h, q_latent, angles, position)
        attended = ops.mla_attention(q_absorbed, q_rope, self.kv_cache, selection, position, self.scale)
        values = ops.head_linear(attended, self.w_uv).reshape(tokens, self.heads * self.value)
        return self.o_proj(values), selection


class Mlp(nn.Module):
    """The gated MLP of dense layers and of the shared expert."""

    def __init__(self, hidden: int, intermediate: int, s: Storage) -> None:
        super().__init__()
        self.gate_proj = Matrix(intermediate, hidden, dtype=s.weight_dtype)
        self.up_proj = Matrix(intermediate, hidden, dtype=s.weight_dtype)
        self.down_proj = Matrix(hidden, intermediate, dtype=s.weight_dtype)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """The residual x plus the MLP of the normed h; [T, hidden] each."""
        y: Tensor = x + self.down_proj(silu(self.gate_proj(h)) * self.up_proj(h))
        return y


class Router(nn.Module):
    """Chooses the experts of each token, by sigmoid scores plus a bias that counts for the choice only."""

    def __init__(self, c: Glm5Config, s: Storage) -> None:
        super().__init__()
        self.topk, self.normalize, self.scale = c.num_experts_per_tok, c.norm_topk_prob, c.routed_scaling_factor
        self.weight = _weight(c.n_routed_experts, c.hidden_size, dtype=s.exact_dtype)
        self.e_score_correction_bias = _weight(c.n_routed_experts)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """h [T, hidden] -> expert ids i32 [T, k] and their weights [T, k]."""
        logits = ops.linear(h, self.weight)
        ids, weights = ops.route(logits, self.e_score_correction_bias, self.topk, self.normalize, self.scale)
        return ids, weights


class Experts(nn.Module):
    """The routed experts. The tokens of a step share slots: an expert that several tokens chose is read once."""

    def __init__(self, c: Glm5Config, s: Storage) -> None:
        super().__init__()
        self.count, self.topk = c.n_routed_experts, c.num_experts_per_tok
        self.gate_proj = Matrix(self.count, c.moe_intermediate_size, c.hidden_size, dtype=s.weight_dtype)
        self.up_proj = Matrix(self.count, c.moe_intermediate_size, c.hidden_size, dtype=s.weight_dtype)
        self.down_proj = Matrix(self.count, c.hidden_size, c.moe_intermediate_size, dtype=s.weight_dtype)

    def forward(self, h: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """h [T, hidden], ids and weights [T, k] -> [T, hidden]."""
        slots = min(h.shape[0] * self.topk, self.count)
        expert, slot_weight = ops.dispatch(ids, weights, slots)
        gate = ops.expert_linear(h, expert, self.gate_proj.weight)
        up = ops.expert_linear(h, expert, self.up_proj.weight)
        y: Tensor = ops.expert_combine(silu(gate) * up, expert, slot_weight, self.down_proj.weight)
        return y


class Moe(nn.Module):
    """The mixture of experts: the shared expert, which every token passes, and the routed ones."""

    def __init__(self, c: Glm5Config, s: Storage) -> None:
        super().__init__()
        self.gate = Router(c, s)
        self.experts = Experts(c, s)
        self.shared_experts = Mlp(c.hidden_size, c.shared_intermediate_size, s)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """The residual x plus the experts' outputs for the normed h; [T, hidden] each."""
        ids, weights = self.gate(h)
        y: Tensor = self.shared_experts(x, h) + self.experts(h, ids, weights)
        return y


class Layer(nn.Module):
    """Attention and MLP, each on the normed residual stream and added back to it."""

    def __init__(self, c: Glm5Config, s: Storage, layer: int) -> None:
        super().__init__()
        # The MTP layer comes after the last of the main model, with an indexer and experts of its own.
        extra = layer == c.mtp_layer
        full = extra or c.indexer_types[layer] == "full"
        sparse = extra or c.mlp_layer_types[layer] == "sparse"
        self.input_layernorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c, s, full)
        self.post_attention_layernorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = Moe(c, s) if sparse else Mlp(c.hidden_size, c.intermediate_size, s)

    def forward(
        self, x: Tensor, angles: Tensor, position: Tensor, selection: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """x [T, hidden] -> x after the layer, and the selection for the next one."""
        attended, selection = self.self_attn(self.input_layernorm(x), angles, position, selection)
        x = x + attended
        return self.mlp(x, self.post_attention_layernorm(x)), selection


class Trunk(nn.Module):
    """What a step has besides the lm_head: embedding table, rotation frequencies, layers by number, last norm."""

    inv_freq: Tensor

    def __init__(self, c: Glm5Config, s: Storage, layers: dict[int, Layer], norm: bool) -> None:
        super().__init__()
        self.embed_tokens = Matrix(c.vocab_size, c.hidden_size, dtype=s.exact_dtype)
        self.layers = nn.ModuleDict({str(number): layer for number, layer in layers.items()})
        self.norm = RmsNorm(c.hidden_size, c.rms_norm_eps) if norm else None
        self.register_buffer("inv_freq", inverse_frequencies(c), persistent=False)


def inverse_frequencies(c: Glm5Config) -> Tensor:
    """Radians per position of each rotated pair: f32 [qk_rope_head_dim / 2]."""
    exponents = torch.arange(0, c.qk_rope_head_dim, 2, dtype=torch.float32) / c.qk_rope_head_dim
    return torch.as_tensor(1.0 / (c.rope_theta**exponents))


class Glm5Step(nn.Module):
    """One step of the main model for `tokens` tokens at consecutive positions."""

    def __init__(
        self,
        config: Glm5Config,
        max_seq_len: int,
        tokens: int = 1,
        cache_dtype: torch.dtype = torch.float32,
        weight_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.tokens, s = tokens, Storage(max_seq_len, cache_dtype, weight_dtype)
        layers = {number: Layer(config, s, number) for number in range(config.num_hidden_layers)}
        self.model = Trunk(config, s, layers, norm=True)
        self.lm_head = Matrix(config.vocab_size, config.hidden_size, dtype=s.exact_dtype)

    def forward(self, ids: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """ids i32 [T], position i32 [1] -> logits [T, vocab] and the likeliest next token of each, i32 [T]."""
        model = self.model
        angles = ops.rope_angles(position, model.inv_freq, self.tokens)
        x, selection = ops.embed(ids, model.embed_tokens.weight), None
        for layer in model.layers.values():
            x, selection = layer(x, angles, position, selection)
        assert model.norm is not None
        logits = self.lm_head(model.norm(x))
        return logits, ops.argmax(logits)
