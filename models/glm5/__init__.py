"""GLM-5: latent attention over selected positions, a mixture of experts, and a layer that predicts a further token.

`GLM5` is what the compiler knows of it. The modules that need torch (`step.py`, `mtp.py`) or transformers (`peer.py`)
are imported when they are used.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from tilecompile.models.glm5.config import ARCHITECTURE, MODEL_TYPE, Glm5Config
from tilecompile.models.glm5.named import NAMED
from tilecompile.models.glm5.parameters import INV_FREQ, parameters, spread
from tilecompile.models.spec import ModelSpec, PeerModel, StepProgram, Steps, Storage

if TYPE_CHECKING:
    from torch import Tensor, nn


STATES = ("model.hidden", "model.draft_hidden")


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


def _held(config: Glm5Config, tensors: Collection[str]) -> tuple[Glm5Config, tuple[str, ...]]:
    """Without the MTP layer where there is no tensor of it: transformers drops it when it saves a model, but keeps the
    field."""
    prefix = f"model.layers.{config.mtp_layer}."
    if config.mtp_layer is None or any(name.startswith(prefix) for name in tensors):
        return config, ()
    note = f"config.json has an MTP layer but no tensor {prefix}* exists; compiled without it"
    return replace(config, num_nextn_predict_layers=0), (note,)


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
    named=NAMED,
    relatives={"glm5_next": "GLM-5.3-Flash is another model (with linear attention), which is not supported"},
    peer=_peer,
    same_results=frozenset(
        (
            "num_nextn_predict_layers",
            "index_share_for_mtp_iteration",
            "eos_token_id",
            "max_position_embeddings",
            "dtype",
        )
    ),
)
