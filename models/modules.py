"""Modules that models are written with: matrices, norms, the gated MLP, rotation frequencies.

Parameters are empty tensors without gradients: a step is traced on the meta device, or filled from `weights.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tilecompile import ops
from tilecompile.ops.dtypes import torch_dtype


def weight(*shape: int, dtype: str = "f32") -> nn.Parameter:
    """A parameter without values, of an element type or weight format."""
    return nn.Parameter(torch.empty(shape, dtype=torch_dtype(dtype)), requires_grad=False)


class Matrix(nn.Module):
    """A matrix [rows, cols], a stack of them [experts, rows, cols] or a table; called, the product with a matrix."""

    def __init__(self, *shape: int, dtype: str) -> None:
        super().__init__()
        self.weight = weight(*shape, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, cols] -> [T, rows]."""
        y: Tensor = ops.linear(x, self.weight)
        return y


class RmsNorm(nn.Module):
    """Root-mean-square norm of each token."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = weight(width)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [T, width] -> [T, width]."""
        y: Tensor = ops.rms_norm(x, self.weight, self.eps)
        return y


class LayerNorm(nn.Module):
    """Layer norm of each token, with bias."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = weight(width)
        self.bias = weight(width)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [T, width] -> [T, width]."""
        y: Tensor = ops.layer_norm(x, self.weight, self.bias, self.eps)
        return y


class GatedMlp(nn.Module):
    """A gated MLP, added to the residual stream."""

    def __init__(self, hidden: int, intermediate: int, dtype: str) -> None:
        super().__init__()
        self.gate_proj = Matrix(intermediate, hidden, dtype=dtype)
        self.up_proj = Matrix(intermediate, hidden, dtype=dtype)
        self.down_proj = Matrix(hidden, intermediate, dtype=dtype)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """The residual x plus the MLP of the normed h; [T, hidden] each."""
        y: Tensor = x + self.down_proj(silu(self.gate_proj(h)) * self.up_proj(h))
        return y


def next_ids(logits: Tensor, ids: Tensor, position: Tensor, sampling: tuple[Tensor, ...], shift: int = 0) -> Tensor:
    """The id after each row of the logits [R, vocab], i32 [R]: chosen by SAMPLING, or the likeliest without it.

    ids [T] are the step's, the first of them `shift` positions behind position [1].
    """
    y: Tensor = ops.sample(logits, ids, position, *sampling, shift) if sampling else ops.argmax(logits)
    return y


def inverse_frequencies(width: int, theta: float) -> Tensor:
    """Radians per position of each rotated pair of `width` elements, with the base `theta`: f32 [width / 2]."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
    return torch.as_tensor(1.0 / (theta**exponents))
