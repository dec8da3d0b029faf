"""auto: another recipe's placement, with the operators that `choose.py` found to be faster placed otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from tilecompile.ir.graph import OpGraph
from tilecompile.ir.placement import Placement, Split
from tilecompile.ops.base import op_of
from tilecompile.schedules.shares import ROWS, divided

REPLICATE, SHARD = "replicate", "shard"
"""How an operator can be placed: whole on every device, or divided by rows."""

Recipe = Callable[[OpGraph, int, str | None], Placement]


@dataclass(frozen=True)
class Choice:
    """A recipe's name, the form of its sums, and families (`OpNode.family`) placed otherwise: REPLICATE or SHARD."""

    recipe: str
    reduction: str | None
    otherwise: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        families = "".join(f", {how} {family}" for family, how in self.otherwise.items())
        return f"{self.recipe}{f' ({self.reduction})' if self.reduction else ''}{families}"


def place(graph: OpGraph, devices: int, choice: Choice, recipes: Mapping[str, Recipe]) -> Placement:
    """The recipe's placement with its exceptions. ValueError for devices that the model can't be split over."""
    splits = dict(recipes[choice.recipe](graph, devices, choice.reduction).splits)
    for node in graph.nodes:
        how = choice.otherwise.get(node.family)
        if how == REPLICATE:
            splits[node.name] = Split.whole(tuple(range(devices)))
        elif how == SHARD:
            splits[node.name] = divided(node, ROWS, tuple(range(devices)))
    return Placement("auto", devices, splits)


def alternatives(graph: OpGraph, placement: Placement) -> dict[str, str]:
    """The families with weights read whole or divided by rows, and how each could be placed instead."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        split = placement.splits.get(node.name)
        if split is None or node.layer is None or not node.weights or ROWS not in op_of(node).split_axes:
            continue
        if split.axis == ROWS:
            found[node.family] = REPLICATE
        elif split.axis is None and len(split.parts) == placement.devices:
            found[node.family] = SHARD
    return found


def otherwise(choice: Choice, name: str, how: str) -> Choice:
    """The choice with one more family placed otherwise."""
    return replace(choice, otherwise={**choice.otherwise, name: how})
