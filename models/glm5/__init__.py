"""GLM-5: latent attention over selected positions, a mixture of experts, and a layer that predicts a further token.

`GLM5` is what the compiler knows of it. The modules that need torch (`step.py`, `mtp.py`) or transformers (`peer.py`)
are imported when they are used.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from tilecompile.models.glm5.config import ARCHITECTURE, MODEL_TYPE, Glm5Config
from tilecompile.models.glm5.named import NAMED
from tilecompile.models.glm5.parameters import INV_FREQ, joined_experts, parameters, spread
from tilecompile.models.listed import listed
from tilecompile.models.spec import HeldTensors, ModelSpec, PeerModel, StepProgram, Steps, Storage

if TYPE_CHECKING:
    from torch import Tensor, nn


COPIES = {"embed_tokens.weight": "model.embed_tokens.weight", "shared_head.head.weight": "lm_head.weight"}
"""Tensors of the MTP layer that checkpoints have twice."""

STATES = ("model.hidden", "model.draft_hidden", "model.draft_selection")


def _step(config: Glm5Config, storage: Storage, steps: Steps, tokens: int) -> nn.Module:
    from tilecompile.models.glm5.step import Glm5Step

    return Glm5Step(config, storage, tokens, steps)


def _prefill(config: Glm5Config, storage: Storage, steps: Steps, tokens: int) -> nn.Module:
    from tilecompile.models.glm5.step import Glm5Step

    return Glm5Step(config, storage, tokens, steps, last=True)


def _extend(config: Glm5Config, storage: Storage, steps: Steps, tokens: int) -> nn.Module:
    from tilecompile.models.glm5.mtp import MtpStep

    return MtpStep(config, storage, tokens, steps, extend=True)


def _draft(config: Glm5Config, storage: Storage, steps: Steps, tokens: int) -> nn.Module:
    from tilecompile.models.glm5.mtp import MtpStep

    return MtpStep(config, storage, tokens, steps)


def _programs(config: Glm5Config, steps: Steps) -> tuple[StepProgram[Glm5Config], ...]:
    program = partial(StepProgram[Glm5Config], states=STATES, samples=True)
    found = [program("decode", 1, _step)]
    if steps.drafts:
        found.append(program("verify", 1 + steps.drafts, _step))
    if steps.prefill > 1:
        found.append(program("prefill", steps.prefill, _prefill))
    if steps.drafts:
        found += [program("extend", steps.most, _extend), program("draft", 1, _draft)]
    return tuple(found)


def _inverse_frequencies(config: Glm5Config) -> Tensor:
    from tilecompile.models.modules import inverse_frequencies

    return inverse_frequencies(config.qk_rope_head_dim, config.rope_theta)


def _held(config: Glm5Config, held: HeldTensors) -> tuple[Glm5Config, tuple[str, ...]]:
    """As transformers has it, a model whose lm_head is there and differs from the embedding isn't tied. It is without
    the MTP layer where tensors of that are missing: tools drop it when they save a model, but keep the field."""
    head, embedding, notes = "lm_head.weight", "model.embed_tokens.weight", []
    if config.tie_word_embeddings and held.holds(head) and held.holds(embedding) and held.differ(head, embedding):
        config = replace(config, tie_word_embeddings=False)
        notes.append(
            f"tie_word_embeddings is true, and {head} differs from {embedding}: it is used, so they aren't tied"
        )
    if config.mtp_layer is None:
        return config, tuple(notes)
    prefix = f"model.layers.{config.mtp_layer}."
    joined = joined_experts(config)
    needed = {w.tensor for p in parameters(config).values() for w in p.windows if w.tensor.startswith(prefix)}
    missing = sorted(t for t in needed if not held.holds(t) and not (t in joined and held.holds(joined[t].tensor)))
    if missing:
        found = f"no tensor {prefix}* exists" if len(missing) == len(needed) else f"lacks {listed(missing)}"
        notes.append(f"config.json has an MTP layer but the checkpoint {found}; compiled without it, so without drafts")
        return replace(config, num_nextn_predict_layers=0), tuple(notes)
    for copy, of in COPIES.items():
        if held.holds(prefix + copy) and held.holds(of) and held.differ(prefix + copy, of):
            notes.append(f"{prefix}{copy} differs from {of}, which drafts are made with")
    return config, tuple(notes)


def _spare(config: Glm5Config, tensor: str) -> bool:
    """Tables that are computed, and the MTP layer's copies: `_held` compares those."""
    copies = {f"model.layers.{config.mtp_layer}.{name}" for name in COPIES}
    return tensor.endswith("rotary_emb.inv_freq") or tensor in copies or tensor == "lm_head.weight"


def _peer() -> PeerModel[Glm5Config]:
    from tilecompile.models.glm5.peer import PEER

    return PEER


GLM5 = ModelSpec(
    architecture=ARCHITECTURE,
    model_type=MODEL_TYPE,
    config=Glm5Config,
    programs=_programs,
    parameters=parameters,
    spread=spread,
    drafts=lambda config: config.mtp_layer is not None,
    tables={INV_FREQ: _inverse_frequencies},
    held=_held,
    prefix="model.",
    joined=joined_experts,
    routed=lambda tensor: ".mlp.experts." in tensor,
    spare=_spare,
    named=NAMED,
    relatives={"glm5_next": "GLM-5.3-Flash is another model (with linear attention), which is not supported"},
    peer=_peer,
    chosen=frozenset(("latent_norm_eps",)),
    same_results=frozenset(
        (
            "num_nextn_predict_layers",
            "index_share_for_mtp_iteration",
            "eos_token_id",
            "max_position_embeddings",
            "tie_word_embeddings",
            "dtype",
        )
    ),
)
