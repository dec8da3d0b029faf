"""Which devices run which part of which operator."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from tilecompile.ir.graph import OpGraph
from tilecompile.ir.tiling import PANEL

CONTEXT = "context"
"""The axis of operators that are divided by blocks of positions, cyclically (`ops/context.py`)."""


@dataclass(frozen=True)
class Part:
    """Elements begin:end of the divided dimension, on one device."""

    device: int
    begin: int = 0
    end: int = 0


@dataclass(frozen=True)
class Split:
    """How an operator is placed: whole on each device, or divided along an axis of its op (`TileOp.split_axes`).

    Where the shards are partial sums, `adds` says which columns of the sum each device reduces; where attention is
    divided by context, which heads each device merges. `block` is the number of positions of a block of the context.
    """

    axis: str | None
    parts: tuple[Part, ...]
    adds: tuple[Part, ...] = ()
    block: int = 0

    @staticmethod
    def whole(devices: tuple[int, ...]) -> Split:
        """All of the operator on each of the devices."""
        return Split(None, tuple(Part(d) for d in devices))

    @staticmethod
    def shared(axis: str, units: int, devices: tuple[int, ...], unit: int = 1) -> Split:
        """Nearly equal shares of `units` units of `unit` elements; with too few units, devices at the end have none."""
        return Split(axis, _shares(units, devices, unit))

    @staticmethod
    def cyclic(devices: int, block: int) -> Split:
        """Blocks of the context, one device after the other."""
        return Split(CONTEXT, tuple(Part(d) for d in range(devices)), block=block)

    def one_shot(self, columns: int, devices: int) -> Split:
        """Every device reduces all columns of the sum: a one-shot all-reduce."""
        return Split(self.axis, self.parts, tuple(Part(d, 0, columns) for d in range(devices)))

    def two_step(self, columns: int, devices: int) -> Split:
        """Every device reduces a share of the columns and pushes it to its readers: reduce-scatter, all-gather."""
        unit = PANEL if columns % PANEL == 0 and columns // PANEL >= devices else 1
        return Split(self.axis, self.parts, _shares(columns // unit, tuple(range(devices)), unit))

    @property
    def reduction(self) -> str | None:
        """The form of the sum: one_shot or two_step; None where nothing is summed."""
        if not self.adds or self.axis == CONTEXT:
            return None
        return "one_shot" if len({(p.begin, p.end) for p in self.adds}) == 1 else "two_step"

    def __str__(self) -> str:
        devices = ",".join(str(p.device) for p in self.parts)
        if self.axis is None:
            return f"devices {devices}, whole"
        if self.axis == CONTEXT:
            heads = " ".join(f"{p.begin}:{p.end}" for p in self.adds)
            return f"devices {devices}, context in blocks of {self.block}" + (f", then heads {heads}" if heads else "")
        cuts = " ".join(f"{p.begin}:{p.end}" for p in self.parts)
        text = f"devices {devices}, {self.axis} {cuts}"
        if self.reduction == "one_shot":
            return f"{text}, sum one_shot on {len(self.adds)}"
        if self.reduction == "two_step":
            return f"{text}, sum two_step on {len(self.adds)}: {' '.join(f'{p.begin}:{p.end}' for p in self.adds)}"
        return text


def _shares(units: int, devices: tuple[int, ...], unit: int) -> tuple[Part, ...]:
    """Nearly equal parts of `units` units of `unit` elements, one a device."""
    count = len(devices)
    cuts = [(d * units // count if units >= count else min(d, units)) * unit for d in range(count + 1)]
    return tuple(Part(d, a, b) for d, (a, b) in zip(devices, pairwise(cuts), strict=True) if a < b)


@dataclass(frozen=True)
class Placement:
    """On which devices which parts of the operators of a program run, by operator name."""

    name: str
    devices: int
    splits: dict[str, Split]


@dataclass(frozen=True)
class PlacedGraph:
    """An operator graph in which each operator runs on one device, and the placement that it was made with."""

    graph: OpGraph
    placement: Placement

    def __str__(self) -> str:
        lines = [f"placement {self.placement.name}: {self.placement.devices} device(s)"]
        width = max((len(name) for name in self.placement.splits), default=0)
        lines += [f"  {name:<{width}}  {split}" for name, split in self.placement.splits.items()]
        more = str(self.graph) if self.placement.devices > 1 else ""
        return "\n".join(lines) + "\n" + more
