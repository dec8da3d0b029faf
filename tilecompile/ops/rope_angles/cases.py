"""Random test cases of rope_angles."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Small and large positions, T = 1 and 3, an odd number of angles."""
    for tokens, half, position in ((1, 32, 0), (3, 16, 5), (3, 5, 202_749), (8, 32, 1_048_568)):
        at, inv_freq = View.of("position", (1,), "i32"), View.of("inv_freq", (half,), "f32")
        y = View.of("y", (tokens, 2, half), "f32")
        freq = 1.0 / 1e6 ** (torch.arange(half) / half)
        tensors = {"position": torch.tensor([position], dtype=torch.int32), "inv_freq": freq}
        yield Case(OpNode("rope_angles", "rope_angles", (at, inv_freq), (), (y,), {"tokens": tokens}), tensors, 3e-7)
