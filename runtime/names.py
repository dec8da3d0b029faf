"""The words of an engine's graph: roles of operators, and how a layer's number stands in a name.

Names (`…layers.3.self_attn.o_proj`) are for people. What the compiler needs to know of an operator or a tensor (layer,
device, what it was divided from) are fields of `OpNode` and `Tensor`; this module is the one place that knows how a
name shows the layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

OP, PARTIAL, SUM, PUSH, MERGE, PART = ROLES = ("op", "partial", "sum", "push", "merge", "part")
"""What an operator is to the undivided one that it comes from (`OpNode.role`).

All of it, or a shard whose results are its own; a shard whose results are partial sums; the sum of those; the exchange
of a result with another device; the merging of what parts found; a part of the context, or of the selected positions.
"""

WORD = "layers"
"""The module whose children are the layers of a model, numbered from 0 on."""


def layer_of(path: str) -> int | None:
    """The layer in a module's path, as the checkpoints write it; None for a module outside the layers.

    The name of an operator's result is a path behind a percent sign.
    """
    words = path.removeprefix("%").split(".")
    for word, number in pairwise(words):
        if word == WORD and number.isdecimal():
            return int(number)
    return None


def in_layer(name: str, old: int, new: int) -> str:
    """The name of the corresponding operator or tensor in another layer."""
    return name.replace(f"{WORD}.{old}.", f"{WORD}.{new}.")


def without_layer(name: str, layer: int | None) -> str:
    """The name that an operator or a tensor has in all layers alike."""
    return name if layer is None else name.replace(f"{WORD}.{layer}.", "")


def by_layer(names: Iterable[str]) -> list[str]:
    """Readable names of tensors, those of one layer merged: `model.layers.3.* (12)`."""
    count: dict[str, int] = {}
    for name in names:
        layer = layer_of(name)
        path = f"{WORD}.{layer}."
        key = name if layer is None else f"{name.partition(path)[0]}{path}*"
        count[key] = count.get(key, 0) + 1
    return [f"{key} ({n})" if key.endswith("*") else key for key, n in count.items()]


def within_layer(name: str, layer: int | None) -> str:
    """The name without the path of its layer; in a fused operator's name, this holds for each part."""
    if layer is None:
        return name
    return "+".join(part.rpartition(f"{WORD}.{layer}.")[2] for part in name.split("+"))


def ranges(numbers: list[int]) -> str:
    """Numbers of layers or devices for people: 0, 1, 2 and 5 are 0–2, 5."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs) or "none"
