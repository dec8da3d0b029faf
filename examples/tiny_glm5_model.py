"""GLM-5's architecture (`glm_moe_dsa`) in compact batched torch, for training a tiny one: see train_tiny_glm5.py.

It has every part of GLM-5's decode step: latent attention, an indexer that selects 64 positions, routed experts with a
correction bias, and one recurrent multi-token-prediction (MTP) layer that drafts tokens. Attention is written expanded
and over whole sequences, which trains fast; decoding absorbs `kv_b_proj` and gathers, with the same result.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONFIG = {
    "architectures": ["GlmMoeDsaForCausalLM"], "model_type": "glm_moe_dsa", "dtype": "bfloat16",
    "num_hidden_layers": 4, "hidden_size": 192, "num_attention_heads": 4, "num_key_value_heads": 4,
    "q_lora_rank": 128, "kv_lora_rank": 64, "qk_nope_head_dim": 48, "qk_rope_head_dim": 16, "qk_head_dim": 64,
    "v_head_dim": 64, "head_dim": 16, "index_n_heads": 4, "index_head_dim": 32, "index_topk": 64,
    "indexer_rope_interleave": True, "rope_interleave": True,
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}, "max_position_embeddings": 2048,
    "n_routed_experts": 16, "n_shared_experts": 1, "num_experts_per_tok": 4, "moe_intermediate_size": 64,
    "intermediate_size": 512, "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_group": 1, "topk_group": 1,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    "hidden_act": "silu", "rms_norm_eps": 1e-05, "attention_bias": False, "attention_dropout": 0.0, "vocab_size": 1024,
    "tie_word_embeddings": False, "num_nextn_predict_layers": 1, "initializer_range": 0.02, "use_cache": True,
    "bos_token_id": None, "eos_token_id": [0], "pad_token_id": 0,
}  # fmt: skip
C = SimpleNamespace(**CONFIG)
DRAFTS = 3
NEG = -1e30  # not -inf: 0 * -inf would be NaN in the divergence
LATENT_EPS = 1e-6  # transformers' value for the two latent norms; rms_norm_eps is for the others


def linear(n_in: int, n_out: int) -> nn.Linear:
    return nn.Linear(n_in, n_out, bias=False)


def rope(x: Tensor, offset: int) -> Tensor:
    """Rotate interleaved pairs of x [B, heads, T, rope]; stored as [evens, odds], which leaves dot products alone."""
    freq = C.rope_parameters["rope_theta"] ** (-torch.arange(0, x.shape[-1], 2).float() / x.shape[-1])
    angle = (torch.arange(x.shape[-2]) + offset)[:, None] * freq
    a, b, cos, sin = x[..., 0::2], x[..., 1::2], angle.cos(), angle.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Indexer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq_b = linear(C.q_lora_rank, C.index_n_heads * C.index_head_dim)
        self.wk = linear(C.hidden_size, C.index_head_dim)
        self.weights_proj = linear(C.hidden_size, C.index_n_heads)
        self.k_norm = nn.LayerNorm(C.index_head_dim, eps=1e-6)

    def forward(self, h: Tensor, qr: Tensor, offset: int) -> tuple[Tensor, Tensor, Tensor]:
        cut = [C.qk_rope_head_dim, C.index_head_dim - C.qk_rope_head_dim]
        q = self.wq_b(qr).unflatten(-1, (C.index_n_heads, -1)).transpose(1, 2)
        (q_pe, q), (k_pe, k) = q.split(cut, -1), self.k_norm(self.wk(h))[:, None].split(cut, -1)
        weight = self.weights_proj(h).transpose(1, 2)[..., None] * C.index_n_heads**-0.5
        return torch.cat([rope(q_pe, offset), q], -1), torch.cat([rope(k_pe, offset), k], -1), weight


def logits_over(q: Tensor, keys: list[Tensor]) -> Tensor:
    """q · k against all positions of the first keys and, of each later one, only against the query's own position."""
    return torch.cat([q @ keys[0].transpose(-1, -2)] + [(q * k).sum(-1, keepdim=True) for k in keys[1:]], -1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_a_proj = linear(C.hidden_size, C.q_lora_rank)
        self.q_a_layernorm = nn.RMSNorm(C.q_lora_rank, eps=LATENT_EPS)
        self.q_b_proj = linear(C.q_lora_rank, C.num_attention_heads * C.qk_head_dim)
        self.kv_a_proj_with_mqa = linear(C.hidden_size, C.kv_lora_rank + C.qk_rope_head_dim)
        self.kv_a_layernorm = nn.RMSNorm(C.kv_lora_rank, eps=LATENT_EPS)
        self.kv_b_proj = linear(C.kv_lora_rank, C.num_attention_heads * (C.qk_nope_head_dim + C.v_head_dim))
        self.o_proj = linear(C.num_attention_heads * C.v_head_dim, C.hidden_size)
        self.indexer = Indexer()

    def forward(self, h: Tensor, past: list, sparse: bool, kl: list[Tensor] | None) -> Tensor:
        """`past` holds earlier draft steps, empty in the trunk: a draft at position i sees the first step up to i and
        its own later steps, exactly the cache that decoding has at that moment."""
        heads, offset = (C.num_attention_heads, -1), len(past)
        qr = self.q_a_layernorm(self.q_a_proj(h))
        q_nope, q_pe = (
            self.q_b_proj(qr).unflatten(-1, heads).transpose(1, 2).split([C.qk_nope_head_dim, C.qk_rope_head_dim], -1)
        )
        latent, k_pe = self.kv_a_proj_with_mqa(h)[:, None].split([C.kv_lora_rank, C.qk_rope_head_dim], -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent[:, 0])).unflatten(-1, heads).transpose(1, 2)
        k_nope, v = kv.split([C.qk_nope_head_dim, C.v_head_dim], -1)
        q = torch.cat([q_nope, rope(q_pe, offset)], -1)
        k = torch.cat([k_nope, rope(k_pe, offset).expand(-1, C.num_attention_heads, -1, -1)], -1)
        learn_index = sparse or kl is not None
        # Detached: the indexer learns from the attention and never bends the model towards itself.
        iq, ik, iw = self.indexer(h.detach(), qr.detach(), offset) if learn_index else (None, None, None)
        past.append((k, v, ik))
        if not learn_index and offset == 0:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.o_proj(out.transpose(1, 2).flatten(2))
        keys, values, index_keys = zip(*past, strict=True)
        future = F.pad(torch.ones(h.shape[1], h.shape[1], dtype=torch.bool).triu(1), (0, offset))
        scores = (logits_over(q, keys) * C.qk_head_dim**-0.5).masked_fill(future, NEG)
        if learn_index:
            index = (torch.relu(logits_over(iq, index_keys) * C.index_head_dim**-0.5) * iw).sum(1)
            index = index.masked_fill(future, NEG)
            if kl is not None:
                dense = scores.detach().softmax(-1).mean(1)
                kl.append(F.kl_div(index.log_softmax(-1), dense, reduction="sum") / dense[..., 0].numel())
            if sparse and index.shape[-1] > C.index_topk:
                dropped = torch.ones_like(index, dtype=torch.bool).scatter(-1, index.topk(C.index_topk).indices, False)
                scores = scores.masked_fill(dropped[:, None], NEG)
        weights = scores.softmax(-1)
        out = weights[..., : h.shape[1]] @ values[0]
        for n, value in enumerate(values[1:], h.shape[1]):
            out = out + weights[..., n : n + 1] * value
        return self.o_proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = linear(C.hidden_size, inner), linear(C.hidden_size, inner)
        self.down_proj = linear(inner, C.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(C.n_routed_experts, C.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(C.n_routed_experts))
        self.register_buffer("load", torch.zeros(C.n_routed_experts), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        score = F.linear(x, self.weight).sigmoid()
        chosen = (score.detach() + self.e_score_correction_bias).topk(C.num_experts_per_tok).indices
        if self.training:
            self.load += chosen.flatten().bincount(minlength=C.n_routed_experts)
        weight = score.gather(-1, chosen)
        return chosen, weight / weight.sum(-1, keepdim=True) * C.routed_scaling_factor

    @torch.no_grad()
    def balance(self, rate: float) -> None:
        """Balance without an auxiliary loss: the bias of an expert rises while it gets less than its share."""
        self.e_score_correction_bias += rate * (self.load.mean() - self.load).sign()
        self.load.zero_()


class Moe(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.shared_experts = Router(), Mlp(C.moe_intermediate_size * C.n_shared_experts)
        self.experts = nn.ModuleList(Mlp(C.moe_intermediate_size) for _ in range(C.n_routed_experts))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        chosen, weight = self.gate(flat)
        order = chosen.flatten().argsort(stable=True)  # rows of one expert side by side: one matmul per expert
        token = order // C.num_experts_per_tok
        rows = flat[token].split(chosen.flatten().bincount(minlength=C.n_routed_experts).tolist())
        out = torch.cat([expert(r) for expert, r in zip(self.experts, rows, strict=True)])
        routed = torch.zeros_like(flat).index_add(0, token, out * weight.flatten()[order, None])
        return self.shared_experts(x) + routed.view_as(x)


class Layer(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(C.hidden_size, eps=C.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(C.hidden_size, eps=C.rms_norm_eps)
        self.self_attn = Attention()
        self.mlp = Moe() if number >= C.first_k_dense_replace else Mlp(C.intermediate_size)
        if number >= C.num_hidden_layers:  # the MTP layer
            self.enorm, self.hnorm = (nn.RMSNorm(C.hidden_size, eps=C.rms_norm_eps) for _ in range(2))
            self.eh_proj = linear(2 * C.hidden_size, C.hidden_size)
            self.shared_head = nn.ModuleDict({"norm": nn.RMSNorm(C.hidden_size, eps=C.rms_norm_eps)})

    def forward(self, x: Tensor, past: list, sparse: bool, kl: list[Tensor] | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), past, sparse, kl)
        return x + self.mlp(self.post_attention_layernorm(x))


class TinyGlm5(nn.Module):
    """Modules are nested so that every parameter's name is its name in a GLM-5 checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(C.vocab_size, C.hidden_size)
        self.model.layers = nn.ModuleList(Layer(n) for n in range(C.num_hidden_layers + C.num_nextn_predict_layers))
        self.model.norm = nn.RMSNorm(C.hidden_size, eps=C.rms_norm_eps)
        self.lm_head = linear(C.hidden_size, C.vocab_size)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                gain = (2 * C.num_hidden_layers) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
                nn.init.normal_(p, std=gain * 0.7 * p.shape[1] ** -0.5)
        nn.init.normal_(self.model.embed_tokens.weight, std=0.5)
        nn.init.normal_(self.lm_head.weight, std=0.02)

    def forward(self, ids: Tensor, sparse: bool, kl: list[Tensor] | None = None) -> Tensor:
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers[: C.num_hidden_layers]:
            x = layer(x, [], sparse, kl)
        return self.model.norm(x)

    def drafts(self, hidden: Tensor, ids: Tensor, sparse: bool, kl: list[Tensor] | None = None) -> list[Tensor]:
        """Hidden states of the draft steps. Row i of step k (from 1) has seen tokens up to i + k; ids is DRAFTS longer
        than hidden. What a step gets back is the post-norm hidden state of the step before."""
        mtp, past, steps, length = self.model.layers[-1], [], [], hidden.shape[1]
        for k in range(1, DRAFTS + 1):
            embedded = mtp.enorm(self.model.embed_tokens(ids[:, k : k + length]))
            x = mtp.eh_proj(torch.cat([embedded, mtp.hnorm(hidden)], -1))
            hidden = mtp.shared_head["norm"](mtp(x, past, sparse, kl))
            steps.append(hidden)
        return steps
