"""The tile ops: a small vocabulary that models are written in. Importing this package registers all of them."""

from tilecompile.ops import attention_merge, commit, map, push, topk_candidates, topk_merge  # noqa: F401  (no torch op)
from tilecompile.ops.argmax import argmax
from tilecompile.ops.cache_append import cache_append
from tilecompile.ops.dispatch import dispatch
from tilecompile.ops.embed import embed
from tilecompile.ops.expert_combine import expert_combine
from tilecompile.ops.expert_linear import expert_linear
from tilecompile.ops.head_linear import head_linear
from tilecompile.ops.index_score import index_score
from tilecompile.ops.keep import keep
from tilecompile.ops.last_token import last_token
from tilecompile.ops.layer_norm import layer_norm
from tilecompile.ops.linear import linear
from tilecompile.ops.mla_attention import mla_attention
from tilecompile.ops.rms_norm import rms_norm
from tilecompile.ops.rope import rope
from tilecompile.ops.rope_angles import rope_angles
from tilecompile.ops.route import route
from tilecompile.ops.sample import sample
from tilecompile.ops.token_positions import token_positions
from tilecompile.ops.topk_select import topk_select

__all__ = [
    "argmax",
    "cache_append",
    "dispatch",
    "embed",
    "expert_combine",
    "expert_linear",
    "head_linear",
    "index_score",
    "keep",
    "last_token",
    "layer_norm",
    "linear",
    "mla_attention",
    "rms_norm",
    "rope",
    "rope_angles",
    "route",
    "sample",
    "token_positions",
    "topk_select",
]
