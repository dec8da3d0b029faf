"""A small dense decoder outside the package: a configuration, parameter names and a checkpoint of its own.

Attention of all heads over one latent a position, gated MLPs, queries and keys in one tensor of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from tilecompile import ops
from tilecompile.models.fields import check_only, plain_fields
from tilecompile.models.modules import GatedMlp, Matrix, RmsNorm, inverse_frequencies
from tilecompile.models.spec import (
    Figures,
    LayerKind,
    ModelSpec,
    Parameter,
    StepProgram,
    Storage,
    Window,
)
from tilecompile.ops.dtypes import torch_dtype

ARCHITECTURE = "SmallDenseForCausalLM"


@dataclass(frozen=True)
class DenseConfig:
    """Sizes of the model; `positions` is its limit."""

    vocab_size: int = 90
    width: int = 48
    depth: int = 2
    heads: int = 3
    latent: int = 24
    rotated: int = 8
    inner: int = 80
    positions: int = 64
    eps: float = 1e-5
    theta: float = 1e4
    eos_token_id: tuple[int, ...] = ()

    @property
    def architecture(self) -> str:
        return ARCHITECTURE

    @property
    def weight_type(self) -> str:
        return "f32"

    @property
    def max_position_embeddings(self) -> int:
        return self.positions

    @property
    def layers(self) -> tuple[LayerKind, ...]:
        return (LayerKind("dense"),) * self.depth

    @property
    def figures(self) -> Figures:
        count = sum(torch.Size(p.shape).numel() for p in parameters(self).values())
        return Figures(count, count - self.vocab_size * self.width, self.depth, self.width)

    def with_layers(self, layers: Sequence[int]) -> Self:
        return replace(self, depth=len(layers))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "architectures": [ARCHITECTURE], "model_type": "small_dense"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config") -> Self:
        check_only(values, {"act": ("silu",)}, source)
        return cls(**plain_fields(cls, values, source))


class Block(nn.Module):
    """Attention and MLP of one layer."""

    keys: Tensor
    cache: Tensor

    def __init__(self, c: DenseConfig, s: Storage) -> None:
        super().__init__()
        self.c = c
        self.before, self.between = RmsNorm(c.width, c.eps), RmsNorm(c.width, c.eps)
        self.query = Matrix(c.heads * (c.latent + c.rotated), c.width, dtype=s.weights)
        self.key = Matrix(c.latent + c.rotated, c.width, dtype=s.weights)
        self.out = Matrix(c.width, c.heads * c.latent, dtype=s.weights)
        self.mlp = GatedMlp(c.width, c.inner, s.weights)
        for name, width in (("cache", c.latent + c.rotated), ("keys", c.rotated)):
            self.register_buffer(name, torch.zeros(s.max_seq_len, width, dtype=torch_dtype(s.cache)), persistent=False)

    def forward(self, x: Tensor, angles: Tensor, position: Tensor) -> Tensor:
        c, h, tokens = self.c, self.before(x), x.shape[0]
        latent, rotated = self.query(h).view(tokens, c.heads, -1).split([c.latent, c.rotated], dim=2)
        rotated = ops.rope(rotated, angles)
        value, key = self.key(h).split([c.latent, c.rotated], dim=1)
        key = ops.rope(key.view(tokens, 1, c.rotated), angles).view(tokens, c.rotated)
        ops.cache_append(self.cache, value, position, 0)
        ops.cache_append(self.cache, key, position, c.latent)
        ops.cache_append(self.keys, key, position, 0)
        # As many positions are selected as there are, whatever their scores.
        scores = ops.index_score(rotated, value[:, : c.heads], self.keys, position, c.positions)
        selection = ops.topk_select(scores, position, c.positions)
        seen = ops.mla_attention(latent, rotated, self.cache, selection, position, (c.latent + c.rotated) ** -0.5)
        x = x + self.out(seen.reshape(tokens, c.heads * c.latent))
        y: Tensor = self.mlp(x, self.between(x))
        return y


class DenseStep(nn.Module):
    """One step: ids [T], position [1] -> logits [T, vocab], the likeliest next tokens [T]."""

    table: Tensor

    def __init__(self, c: DenseConfig, s: Storage, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.words = Matrix(c.vocab_size, c.width, dtype=s.exact)
        self.layers = nn.ModuleList([Block(c, s) for _ in range(c.depth)])
        self.last = RmsNorm(c.width, c.eps)
        self.head = Matrix(c.vocab_size, c.width, dtype=s.exact)
        self.register_buffer("table", inverse_frequencies(c.rotated, c.theta), persistent=False)

    def forward(self, ids: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        angles = ops.rope_angles(position, self.table, self.tokens)
        x = ops.embed(ids, self.words.weight)
        for layer in self.layers:
            x = layer(x, angles, position)
        logits = self.head(self.last(x))
        return logits, ops.argmax(logits)


def parameters(c: DenseConfig) -> dict[str, Parameter]:
    """The parameters, of which the checkpoint has queries and keys in one tensor and calls all by other names."""
    out: dict[str, Parameter] = {}

    def plain(name: str, tensor: str, *shape: int) -> None:
        out[f"{name}.weight"] = Parameter(shape, (Window(tensor, shape),))

    plain("words", "wte", c.vocab_size, c.width)
    plain("head", "output", c.vocab_size, c.width)
    plain("last", "ln_f", c.width)
    head = c.latent + c.rotated
    both = (c.heads * head + head, c.width)
    for i in range(c.depth):
        name, tensor = f"layers.{i}", f"h.{i}"
        plain(f"{name}.before", f"{tensor}.ln_1", c.width)
        plain(f"{name}.between", f"{tensor}.ln_2", c.width)
        out[f"{name}.query.weight"] = Parameter((c.heads * head, c.width), (Window(f"{tensor}.qk", both),))
        out[f"{name}.key.weight"] = Parameter((head, c.width), (Window(f"{tensor}.qk", both, row=c.heads * head),))
        plain(f"{name}.out", f"{tensor}.proj", c.width, c.heads * c.latent)
        plain(f"{name}.mlp.gate_proj", f"{tensor}.gate", c.inner, c.width)
        plain(f"{name}.mlp.up_proj", f"{tensor}.up", c.inner, c.width)
        plain(f"{name}.mlp.down_proj", f"{tensor}.down", c.width, c.inner)
    return out


def spread(c: DenseConfig, tensor: str, cols: int) -> tuple[float, float]:
    """Norms near 1, matrices that keep the variance."""
    return (1.0, 0.1) if "ln_" in tensor else (0.0, 1.0 if tensor == "wte" else cols**-0.5)


DECODE: StepProgram[DenseConfig] = StepProgram("decode", 1, lambda c, s, steps, tokens: DenseStep(c, s, tokens))
DENSE = ModelSpec(
    architecture=ARCHITECTURE,
    model_type="small_dense",
    config=DenseConfig,
    programs=lambda config, steps: (DECODE,),
    parameters=parameters,
    spread=spread,
    tables={"table": lambda c: inverse_frequencies(c.rotated, c.theta)},
    named={"small-dense": DenseConfig()},
)
