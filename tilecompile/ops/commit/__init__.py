"""commit: the sink of a step program. The kernel's loop implements it: it publishes the next step's record.

It reads the sampled ids and rewrites the controller's words (ids, position, what bodies sample with); every other task
comes before it.
"""

from __future__ import annotations

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import Tiling, whole
from tilecompile.ops.base import TileOp, register


def tile(node: OpNode, parts: int) -> Tiling:
    """One task. Inputs: logits and sampled ids, then the controller's ids, position and so on, which it writes."""
    return Tiling(
        coords=np.zeros((1, 4), np.int32),
        reads=(whole(node, 0), whole(node, 1)),
        writes=tuple(whole(node, i) for i in range(2, len(node.inputs))),
        weights=((),),
        cost=np.ones(1),
    )


def cpu(node: OpNode) -> str:
    """Nothing to call: the loop holds the code."""
    return ""


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> None:
    """Nothing to compute."""


COMMIT = register(TileOp("commit", tile, cpu, reference, is_sink=True))
