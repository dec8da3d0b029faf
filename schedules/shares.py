"""Shares: the ways in which recipes divide a model's operators, and the forms of a sum over devices.

Heads and intermediate rows are divided after Megatron-LM (arXiv 1909.08053): the projections into them by rows, those
out of them by columns, whose results are partial sums. Shares are nearly equal; nothing is padded.
"""

from __future__ import annotations

import re

from tilecompile.ir.graph import OpGraph
from tilecompile.ir.node import OpNode
from tilecompile.ir.placement import Split

ROWS = r"(gate_proj|up_proj|^lm_head|\.lm_head)$"
"""Divided by rows of the weight, in whole panels where they suffice; of a fused pair the last name decides."""

COLS = r"(down_proj)$"
"""Divided by columns of the weight."""

HOP_BYTES = 900_000
"""Bytes that a device pushes in the time of one hop more: 2 µs at 450 GB/s, as machines/h200x8.toml assumes them."""


def by_heads(graph: OpGraph, devices: tuple[int, ...]) -> dict[str, Split]:
    """Splits of the operators that work on attention heads; of o_proj without who adds its partial sums.

    With fewer heads than devices those at the end have none.
    """
    heads = max((n.inputs[0].shape[1] for n in graph.nodes if n.op == "mla_attention"), default=1)
    producer = graph.producer()
    splits: dict[str, Split] = {}
    for node in graph.nodes:
        made = [producer[v.tensor].name for v in node.inputs[:1] if v.tensor in producer]
        if node.op == "mla_attention" or (node.op in ("head_linear", "rope") and splits.keys() & made):
            splits[node.name] = Split.shared("heads", heads, devices)
        elif node.name.endswith("self_attn.q_b_proj"):
            splits[node.name] = Split.shared("rows", heads, devices, node.weights[0].shape[0] // heads)
        elif node.name.endswith("self_attn.o_proj"):
            splits[node.name] = Split.shared("cols", heads, devices, node.weights[0].shape[1] // heads)
    return splits


def by_rows_or_cols(node: OpNode, devices: tuple[int, ...]) -> Split | None:
    """Split of an operator of the MLPs, the experts or of the lm_head, None of others.

    ValueError if a device would get nothing.
    """
    for axis, pattern, dimension in (("rows", ROWS, -2), ("cols", COLS, -1)):
        if node.weights and re.search(pattern, node.name):
            return divided(node, axis, node.weights[0].shape[dimension], devices)
    return None


def divided(node: OpNode, axis: str, size: int, devices: tuple[int, ...]) -> Split:
    """Shares of `size` rows or columns: whole panels where there are enough, else single ones.

    ValueError if a device would get nothing.
    """
    if size < len(devices):
        raise ValueError(f"{node.name} has {size} {axis}, which can't be divided over {len(devices)} devices")
    unit = 16 if size % 16 == 0 and size // 16 >= len(devices) else 1
    return Split.shared(axis, size // unit, devices, unit)


def summed(node: OpNode, split: Split, devices: int, reduction: str | None) -> Split:
    """The split with who adds the partial sums: all devices, in the form that is given or, with None, in the cheaper.

    `one_shot`: each adds all columns. `two_step`: each adds its share of them and pushes the sums to the others.

    A device pushes D-1 copies of its sum for `one_shot`, and 2 (D-1)/D for `two_step`, which takes one hop more. So
    the second is cheaper where the difference is more than what a link moves in the time of a hop, HOP_BYTES: for
    GLM-5 on 8 devices from 7 tokens a step on (129 kB a token), and never on 2. The bits are the same, since both add
    the devices' sums in their order.
    """
    tokens, columns = node.outputs[0].shape
    saved = 4 * tokens * columns * (devices - 1) * (devices - 2) / devices
    if reduction == "two_step" or (reduction is None and saved > HOP_BYTES):
        return split.two_step(columns, devices)
    return split.one_shot(columns, devices)
