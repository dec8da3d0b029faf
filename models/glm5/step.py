"""One decode step of GLM-5, written in tile ops: the program that the compiler traces.

GLM-5 is a decoder with latent attention over selected positions (`attention.py`) and a mixture of experts (`moe.py`). A
step takes T tokens at consecutive positions, the first at `position`, appends them to the caches and returns the logits
after each. Between tile ops stand only elementwise operators and views that keep dimension 0, the tokens. Nothing
depends on data in Python, so a step traces on the meta device without weights.

Modules and parameters are named as in the published checkpoints. Where the layout differs (`w_uk`, `w_uv`, stacked
experts, `eh_proj_*`), `parameters.py` says how to cut the checkpoint's tensors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tilecompile import ops
from tilecompile.models.glm5.attention import Attention, Rows
from tilecompile.models.glm5.config import Glm5Config
from tilecompile.models.glm5.moe import Moe
from tilecompile.models.modules import GatedMlp, Matrix, RmsNorm, inverse_frequencies, next_ids
from tilecompile.models.spec import Steps, Storage


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
        self.mlp = Moe(c, s) if sparse else GatedMlp(c.hidden_size, c.intermediate_size, s.weights)

    def forward(self, cached: Rows, asking: Rows, selection: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The rows `asking` [T, hidden] after the layer, and the selection for the next one.

        `cached` are the rows that the layer's caches take: the same ones, or those of more tokens, up to these.
        """
        normed = cached.normed(self.input_layernorm)
        rows = normed if asking is cached else asking.normed(self.input_layernorm)
        attended, selection = self.self_attn(normed, rows, selection)
        x = asking.x + attended
        return self.mlp(x, self.post_attention_layernorm(x)), selection


class Trunk(nn.Module):
    """What a step has besides the lm_head: embedding table, rotation frequencies, layers by number, last norm.

    `states` names what step programs hand to each other, with its rows: `hidden`, the normed hidden rows of the main
    model's last step, and `draft_hidden`, that of the MTP layer's last token.
    """

    inv_freq: Tensor
    hidden: Tensor
    draft_hidden: Tensor

    def __init__(
        self, c: Glm5Config, layers: dict[int, Layer], s: Storage, norm: bool, states: Mapping[str, int]
    ) -> None:
        super().__init__()
        self.embed_tokens = Matrix(c.vocab_size, c.hidden_size, dtype=s.exact)
        self.layers = nn.ModuleDict({str(number): layer for number, layer in layers.items()})
        self.norm = RmsNorm(c.hidden_size, c.rms_norm_eps) if norm else None
        self.register_buffer("inv_freq", inverse_frequencies(c.qk_rope_head_dim, c.rope_theta), persistent=False)
        for name, rows in states.items():
            self.register_buffer(name, torch.zeros(rows, c.hidden_size), persistent=False)


ONE = Steps()


class Glm5Step(nn.Module):
    """One step of the main model for `tokens` tokens at consecutive positions.

    With `last` it gives the logits of the last token alone. Where tokens are drafted, it keeps the hidden rows.
    """

    def __init__(
        self, config: Glm5Config, storage: Storage, tokens: int = 1, steps: Steps = ONE, last: bool = False
    ) -> None:
        super().__init__()
        self.tokens, self.last, self.keeps = tokens, last, steps.drafts > 0
        layers = {number: Layer(config, storage, number) for number in range(config.num_hidden_layers)}
        self.model = Trunk(config, layers, storage, norm=True, states={"hidden": steps.most} if self.keeps else {})
        self.lm_head = Matrix(config.vocab_size, config.hidden_size, dtype=storage.exact)

    def forward(self, ids: Tensor, position: Tensor, *sampling: Tensor) -> tuple[Tensor, Tensor]:
        """ids i32 [T], position i32 [1], SAMPLING or nothing -> logits [R, vocab] and the id after each, i32 [R].

        R is T, or 1 with `last`.
        """
        model = self.model
        angles = ops.rope_angles(position, model.inv_freq, self.tokens)
        x, selection = ops.embed(ids, model.embed_tokens.weight), None
        for layer in model.layers.values():
            rows = Rows(x, angles, position)
            x, selection = layer(rows, rows, selection)
        assert model.norm is not None
        if self.keeps:
            ops.keep(model.hidden, model.norm(x))
        # The norm comes once more before the lm_head, into which it is folded.
        logits = self.lm_head(model.norm(ops.last_token(x) if self.last else x))
        return logits, next_ids(logits, ids, position, sampling)
