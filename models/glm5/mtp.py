"""Steps of GLM-5's multi-token prediction (MTP) layer, which drafts the token after the next one."""

from __future__ import annotations

from torch import Tensor, nn

from tilecompile import ops
from tilecompile.models.glm5.attention import Rows, Selection
from tilecompile.models.glm5.config import Glm5Config
from tilecompile.models.glm5.step import ONE, Layer, Trunk
from tilecompile.models.modules import Matrix, RmsNorm, next_ids
from tilecompile.models.spec import Steps, Storage


class MtpLayer(Layer):
    """The layer that predicts a further token, with the norms and projections that join its two inputs."""

    def __init__(self, c: Glm5Config, s: Storage, layer: int, shares: bool) -> None:
        super().__init__(c, s, layer, shares)
        self.enorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.hnorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        # The checkpoint's eh_proj acts on [embedding; hidden]; its two halves act on one each, and nothing is joined.
        self.eh_proj_embed = Matrix(c.hidden_size, c.hidden_size, dtype=s.exact)
        self.eh_proj_hidden = Matrix(c.hidden_size, c.hidden_size, dtype=s.exact)
        self.shared_head = nn.ModuleDict({"norm": RmsNorm(c.hidden_size, c.rms_norm_eps)})


class MtpStep(nn.Module):
    """One step of the MTP layer: from tokens and the hidden states before them to a draft of what follows the last.

    A token's row of the layer's caches is at the position of the hidden state, one before the token's own. Both hidden
    states are those *after* the last norm. `extend` takes the main model's hidden rows, for the tokens that were
    accepted; without it the step is for one token and takes its own last one, for the draft before.

    Of the tokens before the last one nothing but their rows of the caches is needed, so nothing else is computed.

    With `index_share_for_mtp_iteration` a round's first draft, which `extend` makes, selects positions for all of the
    round: later ones attend to these and to the positions since, their own included. So they have no indexer, and
    write no keys for one: `extend` computes the rows of all tokens that were accepted.
    """

    def __init__(
        self, config: Glm5Config, storage: Storage, tokens: int = 1, steps: Steps = ONE, extend: bool = False
    ) -> None:
        super().__init__()
        if config.mtp_layer is None:
            raise ValueError("the model has no MTP layer: num_nextn_predict_layers is 0")
        self.tokens, self.extend = tokens, extend
        self.shares = config.index_share_for_mtp_iteration
        layers = {config.mtp_layer: MtpLayer(config, storage, config.mtp_layer, self.shares and not extend)}
        states = {"draft_hidden": 1} | ({"hidden": steps.most} if extend else {})
        # The position, and room for what was selected and for the positions of the drafts after the first.
        selected = 1 + config.index_topk + max(0, steps.drafts - 1) if self.shares else 0
        self.model = Trunk(config, layers, storage, False, states, selected)
        # A copy of the lm_head in another format changes what is drafted, and never what the main model says.
        self.head, dtype = ("draft_head", storage.draft_head) if storage.draft_head else ("lm_head", storage.exact)
        self.add_module(self.head, Matrix(config.vocab_size, config.hidden_size, dtype=dtype))

    @property
    def layer(self) -> MtpLayer:
        """The one layer."""
        (layer,) = self.model.layers.values()
        assert isinstance(layer, MtpLayer)
        return layer

    def forward(self, ids: Tensor, position: Tensor, *sampling: Tensor) -> tuple[Tensor, Tensor]:
        """ids i32 [T], position i32 [1], SAMPLING or nothing -> logits [1, vocab] after the last token and the draft.

        The draft is chosen with the noise that the main model's step will have for its position: where the two models
        agree, so do their draws.
        """
        layer = self.layer
        hidden = self.model.hidden if self.extend else self.model.draft_hidden
        angles = ops.rope_angles(position, self.model.inv_freq, self.tokens)
        embedded = layer.enorm(ops.embed(ids, self.model.embed_tokens.weight))
        x = layer.eh_proj_embed(embedded) + layer.eh_proj_hidden(layer.hnorm(hidden))
        rows = Rows(x, angles, position)
        asking, selection = rows.last() if self.extend else rows, None
        if self.shares and not self.extend:
            entries, last = ops.share_selection(self.model.draft_selection, position, self.tokens)
            selection = Selection(entries, last.view(1))
        x, selection = layer(rows, asking, selection)
        if self.shares and self.extend:
            ops.keep_selection(self.model.draft_selection, selection.entries, asking.position)
        ops.keep(self.model.draft_hidden, layer.shared_head["norm"](x))
        logits = self.get_submodule(self.head)(layer.shared_head["norm"](x))
        return logits, next_ids(logits, ids, position, sampling, shift=1)
