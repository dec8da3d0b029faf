"""Random test cases of dispatch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case, normal


def cases(generator: torch.Generator) -> Iterator[Case]:
    """One token; tokens that share experts, so that slots stay inactive; as many slots as experts."""
    for tokens, k, experts in ((1, 8, 256), (3, 4, 9), (8, 6, 48), (2, 3, 3)):
        slots = min(tokens * k, experts)
        ids = View("ids", (tokens, k), (k + 1, 1), 1, "i32")
        weights = View("weights", (tokens, k), (k + 2, 1), 2, "f32")
        expert = View.of("expert", (1, slots), "i32")
        slot_weight = View.of("slot_weight", (tokens, slots), "f32")
        drawn = [torch.randperm(experts, generator=generator)[:k] for _ in range(tokens)]
        whole_ids = torch.full((tokens, k + 1), -1, dtype=torch.int32)
        whole_ids[:, 1:] = torch.stack(drawn)
        tensors = {"ids": whole_ids, "weights": normal(generator, View.of("weights", (tokens, k + 2), "f32")).abs()}
        node = OpNode("dispatch", "dispatch", (ids, weights), (), (expert, slot_weight), {"slots": slots})
        yield Case(node, tensors, tolerance=0)
