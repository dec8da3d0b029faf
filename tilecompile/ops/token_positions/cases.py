"""Random test cases of token_positions."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case


def cases(generator: torch.Generator) -> Iterator[Case]:
    """One token and several, small positions and large ones."""
    for tokens, most in ((1, 100), (3, 100), (8, 1 << 20)):
        at, y = View.of("position", (1,), "i32"), View.of("y", (tokens, 1), "i32")
        position = torch.randint(most, (1,), generator=generator, dtype=torch.int32)
        node = OpNode("token_positions", "token_positions", (at,), (), (y,), {"tokens": tokens})
        yield Case(node, {"position": position}, 0)
