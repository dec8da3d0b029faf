"""Random GLM-5 models of transformers, run with a known order of ties, and the near-ties of their choices.

transformers' `GlmMoeDsaForCausalLM` is the reference for the numbers. Which positions the indexer selects and which
experts the router chooses are discrete: where the last kept and the first dropped candidate are closer than rounding,
an equally right computation may choose otherwise, and all logits from there on differ. `teacher_forced` reports the
first such position, `draw` looks for models and texts that have almost none.
"""

from __future__ import annotations

import contextlib
import json
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GlmMoeDsaConfig, GlmMoeDsaForCausalLM
from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa as glm

from tilecompile.models.glm5.config import Glm5Config
from tilecompile.models.glm5.mtp import MtpStep
from tilecompile.models.glm5.parameters import INV_FREQ
from tilecompile.models.glm5.step import Glm5Step
from tilecompile.models.spec import Storage
from tilecompile.models.weights import Weights

NEAR = 1e-5
"""Relative gap below which a choice counts as a near-tie."""

SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "routed_scaling_factor": 2.5,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "q_lora_rank": 128,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 32,
    "index_n_heads": 4,
    "index_head_dim": 32,
    "index_topk": 32,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
"""A small model; `make_model` takes what differs from it."""


def make_model(overrides: dict[str, Any], seed: int) -> tuple[dict[str, Any], GlmMoeDsaForCausalLM]:
    """A random f32 model and its `config.json` as a dict.

    Matrices have variance 1/columns, so that queries, router logits and logits are of order 1; attention scores have a
    deviation of 2, so that single positions matter; norms and biases are far enough from 1 and 0 to show when missing.
    """
    options = {**SMALL, **overrides}
    if "num_attention_heads" in overrides:
        options["num_key_value_heads"] = overrides.get("num_key_value_heads", overrides["num_attention_heads"])
    config = GlmMoeDsaConfig(**options)
    config._attn_implementation = "eager"
    model = GlmMoeDsaForCausalLM(config).eval().requires_grad_(False)
    model.set_experts_implementation("batched_mm")
    generator = torch.Generator().manual_seed(seed)
    branches = (2 * config.num_hidden_layers) ** -0.5
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("inv_freq"):
            continue
        if name.endswith(("e_score_correction_bias", "norm.bias")):
            tensor.normal_(0, 0.1, generator=generator)
        elif "norm" in name:
            tensor.normal_(1, 0.1, generator=generator)
        elif name == "model.embed_tokens.weight":
            deviation = tensor.shape[-1] ** -0.5 if config.tie_word_embeddings else 1.0
            tensor.normal_(0, deviation, generator=generator)
        else:
            gain = 2.0 if "q_b_proj" in name else 2.0 * branches if "o_proj" in name or "down_proj" in name else 1.0
            tensor.normal_(0, gain * tensor.shape[-1] ** -0.5, generator=generator)
    return json.loads(json.dumps(config.to_dict(), default=str)), model


_TopK = namedtuple("_TopK", ("values", "indices"))


class _Choices:
    """The smallest relative gap of a choice at each position, over all layers."""

    def __init__(self, tokens: int) -> None:
        self.gap = torch.full((tokens,), float("inf"))
        self.in_indexer = False

    def add(self, scores: Tensor, kept: int, first: int = 0) -> None:
        """Scores [tokens - first, candidates] of positions from `first` on, of which the `kept` best are chosen."""
        if kept >= scores.shape[-1] or not len(scores):
            return
        best = scores.sort(dim=-1, descending=True).values
        inner, outer = best[:, kept - 1], best[:, kept]
        # Scores are sums: their error goes with the terms, so the yardstick is at least the row's typical score.
        typical = scores.abs().where(scores > -1e30, 0).sum(-1) / (scores > -1e30).sum(-1)
        gap = (inner - outer) / torch.maximum(inner.abs(), outer.abs()).maximum(typical)
        # Where no head's relu lets anything pass both scores are exactly 0, and the lowest index wins everywhere.
        gap = gap.where((inner != 0) | (outer != 0), float("inf"))
        self.gap[first:] = torch.minimum(self.gap[first:], gap)


@contextlib.contextmanager
def _choices(model: GlmMoeDsaForCausalLM, tokens: int) -> Iterator[_Choices]:
    """Makes every top-k stable (the lowest index wins a tie) and records the gaps of all choices."""
    record = _Choices(tokens)
    topk = model.config.index_topk

    def stable(self: Tensor, k: int, dim: int = -1, **_: Any) -> _TopK:
        values, indices = torch.sort(self, dim=dim, descending=True, stable=True)
        if record.in_indexer:
            record.add(self[0, topk:], k, topk)
        return _TopK(values.narrow(dim, 0, k), indices.narrow(dim, 0, k))

    def enter(*_: Any) -> None:
        record.in_indexer = True

    def leave(*_: Any) -> None:
        record.in_indexer = False

    def routed(router: nn.Module, _: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        record.add(output[0].sigmoid() + router.e_score_correction_bias, router.top_k)

    hooks = []
    for module in model.modules():
        if isinstance(module, glm.GlmMoeDsaIndexer):
            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        elif isinstance(module, glm.GlmMoeDsaTopkRouter):
            hooks.append(module.register_forward_hook(routed))
    methods = torch.Tensor.topk, torch.topk
    torch.Tensor.topk, torch.topk = stable, stable
    try:
        yield record
    finally:
        torch.Tensor.topk, torch.topk = methods
        for hook in hooks:
            hook.remove()


def teacher_forced(model: GlmMoeDsaForCausalLM, ids: Tensor) -> tuple[Tensor, int | None]:
    """Logits [T, vocab] of a whole text ids [T] (or its vectors [T, hidden]), and the first near-tie's position."""
    given = {"inputs_embeds": ids[None]} if ids.is_floating_point() else {"input_ids": ids.long()[None]}
    with torch.inference_mode(), _choices(model, len(ids)) as record:
        logits = model(**given, use_cache=False).logits[0]
    near = (record.gap < NEAR).nonzero().flatten()
    return logits, int(near[0]) if len(near) else None


def draw(
    overrides: dict[str, Any], tokens: int, seed: int = 0
) -> tuple[dict[str, Any], GlmMoeDsaForCausalLM, Tensor, Tensor, int]:
    """A model and a text of `tokens` tokens with at most 1 % of its positions excused by near-ties.

    Returns the config, the model, ids [T], the reference's logits [T, vocab] and the number of positions that count.
    """
    for attempt in range(20):
        config, model = make_model(overrides, seed + attempt)
        generator = torch.Generator().manual_seed(seed + attempt)
        ids = torch.randint(0, config["vocab_size"], (tokens,), generator=generator, dtype=torch.int32)
        logits, near = teacher_forced(model, ids)
        counted = tokens if near is None else near
        if tokens - counted <= tokens // 100:
            if counted < tokens:
                print(f"{tokens - counted} of {tokens} positions excused by a near-tie (seed {seed + attempt})")
            return config, model, ids, logits, counted
    raise AssertionError(f"no model without near-ties in 20 seeds from {seed}: {overrides}")


def load(step: Glm5Step | MtpStep, weights: Weights) -> None:
    """Fills a step's parameters."""
    step.model.inv_freq.copy_(weights.full(INV_FREQ))
    for name, parameter in step.named_parameters():
        parameter.copy_(weights.full(name, parameter.dtype))


def run_eager(config: Glm5Config, weights: Weights, ids: Tensor, tokens: int = 1) -> Tensor:
    """Logits [T, vocab] of the eager step, `tokens` tokens at a time; T must be a multiple of it."""
    step = Glm5Step(config, Storage(len(ids)), tokens)
    load(step, weights)
    logits = []
    with torch.inference_mode():
        for start in range(0, len(ids), tokens):
            out, following = step(ids[start : start + tokens], torch.tensor([start], dtype=torch.int32))
            assert torch.equal(following, out.argmax(-1).int())
            logits.append(out)
    return torch.cat(logits)
