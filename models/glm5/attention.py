"""GLM-5's attention: latent attention (MLA) over positions that an indexer selects (DeepSeek Sparse Attention)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tilecompile import ops
from tilecompile.models.glm5.config import Glm5Config
from tilecompile.models.modules import LayerNorm, Matrix, RmsNorm, weight
from tilecompile.models.spec import Storage
from tilecompile.ops.dtypes import torch_dtype


class Rows(NamedTuple):
    """Rows of tokens at consecutive positions: x [T, hidden], rotary angles [T, 2, R/2], the first position i32 [1]."""

    x: Tensor
    angles: Tensor
    position: Tensor

    def normed(self, norm: Callable[[Tensor], Tensor]) -> Rows:
        """The rows after a norm."""
        return self._replace(x=norm(self.x))

    def last(self) -> Rows:
        """The row of the last token of the step alone."""
        tokens, *shape = self.angles.shape
        angles = ops.last_token(self.angles.view(tokens, -1)).view(1, *shape)
        position = ops.last_token(ops.token_positions(self.position, tokens)).view(1)
        return Rows(ops.last_token(self.x), angles, position)


class Indexer(nn.Module):
    """Selects the positions that attention reads: the best `index_topk` by a small attention of its own."""

    index_cache: Tensor

    def __init__(self, c: Glm5Config, s: Storage) -> None:
        super().__init__()
        self.heads, self.width, self.topk, self.scale = c.index_n_heads, c.index_head_dim, c.index_topk, c.index_scale
        self.wq_b = Matrix(self.heads * self.width, c.q_lora_rank, dtype=s.weights)
        self.wk = Matrix(self.width, c.hidden_size, dtype=s.weights)
        self.k_norm = LayerNorm(self.width, c.index_norm_eps)
        self.weights_proj = Matrix(self.heads, c.hidden_size, dtype=s.exact)
        cache = torch.zeros(s.max_seq_len, self.width, dtype=torch_dtype(s.cache))
        self.register_buffer("index_cache", cache, persistent=False)

    def forward(self, cached: Rows, asking: Rows, q_latent: Tensor) -> Tensor:
        """Positions i32 [T, index_topk] for the tokens `asking`, q_latent [T, q_lora_rank]; -1 where there are fewer.

        The keys of `cached` are appended to the cache.
        """
        count, tokens = cached.x.shape[0], asking.x.shape[0]
        key = self.k_norm(self.wk(cached.x)).view(count, 1, self.width)
        key = ops.rope(key, cached.angles).view(count, self.width)
        ops.cache_append(self.index_cache, key, cached.position, 0)
        query = ops.rope(self.wq_b(q_latent).view(tokens, self.heads, self.width), asking.angles)
        head_weight = self.weights_proj(asking.x) * self.scale
        score = ops.index_score(query, head_weight, self.index_cache, asking.position, self.topk)
        selection: Tensor = ops.topk_select(score, asking.position, self.topk)
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
        self.q_a_proj = Matrix(c.q_lora_rank, c.hidden_size, dtype=s.weights)
        self.q_a_layernorm = RmsNorm(c.q_lora_rank, c.latent_norm_eps)
        self.q_b_proj = Matrix(self.heads * c.qk_head_dim, c.q_lora_rank, dtype=s.weights)
        self.kv_a_proj_with_mqa = Matrix(c.kv_width, c.hidden_size, dtype=s.weights)
        self.kv_a_layernorm = RmsNorm(self.latent, c.latent_norm_eps)
        self.w_uk = weight(self.heads, self.latent, self.nope, dtype=s.weights)
        self.w_uv = weight(self.heads, self.value, self.latent, dtype=s.weights)
        self.o_proj = Matrix(c.hidden_size, self.heads * self.value, dtype=s.weights)
        self.indexer = Indexer(c, s) if indexer else None
        cache = torch.zeros(s.max_seq_len, c.kv_width, dtype=torch_dtype(s.cache))
        self.register_buffer("kv_cache", cache, persistent=False)

    def forward(self, cached: Rows, asking: Rows, selection: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Attention [T, hidden] of the normed rows `asking`, and the selection used, for the next layers that share it.

        `cached` are appended to the caches; the tokens `asking` are among them, or in the caches already.
        """
        count, tokens = cached.x.shape[0], asking.x.shape[0]
        q_latent = self.q_a_layernorm(self.q_a_proj(asking.x))
        query = self.q_b_proj(q_latent).view(tokens, self.heads, self.nope + self.rope)
        q_nope, q_rope = query.split([self.nope, self.rope], dim=2)
        q_absorbed = ops.head_linear(q_nope, self.w_uk)
        q_rope = ops.rope(q_rope, asking.angles)

        kv, k_rope = self.kv_a_proj_with_mqa(cached.x).split([self.latent, self.rope], dim=1)
        k_rope = ops.rope(k_rope.view(count, 1, self.rope), cached.angles).view(count, self.rope)
        ops.cache_append(self.kv_cache, self.kv_a_layernorm(kv), cached.position, 0)
        ops.cache_append(self.kv_cache, k_rope, cached.position, self.latent)

        if self.indexer is not None:
            selection = self.indexer(cached, asking, q_latent)
        attended = ops.mla_attention(q_absorbed, q_rope, self.kv_cache, selection, asking.position, self.scale)
        values = ops.head_linear(attended, self.w_uv).reshape(tokens, self.heads * self.value)
        return self.o_proj(values), selection
