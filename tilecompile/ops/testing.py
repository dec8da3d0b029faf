"""What the ops' test cases are written with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.dtypes import torch_dtype


@dataclass(frozen=True)
class Case:
    """One node with the tensors that it reads and mutates, by name; `tolerance` is relative to the output's RMS.

    A result of 0 tolerance (selections, ids) must be equal. `written` marks the elements of the first output that the
    op writes, where that depends on the data; the others must be left as they were.
    """

    node: OpNode
    tensors: dict[str, torch.Tensor]
    tolerance: float = 1e-5
    written: torch.Tensor | None = None


def normal(generator: torch.Generator, view: View, scale: float = 1.0) -> torch.Tensor:
    """A tensor of a view's shape and dtype, normally distributed."""
    return (torch.randn(view.shape, generator=generator) * scale).to(torch_dtype(view.dtype))
