"""Where parts of weights may begin that a device has of them."""

from __future__ import annotations

from collections.abc import Iterable

from tilecompile.errors import InputError
from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import PANEL
from tilecompile.runtime.weight_formats import FORMATS


def check_windows(nodes: Iterable[OpNode]) -> None:
    """InputError for weights with scales that begin within a panel of rows or a line of columns: the bodies take those
    as they are stored."""
    for node in nodes:
        for weight in node.weights:
            stored = FORMATS[weight.dtype]
            row, col = divmod(weight.offset, weight.strides[-2])
            if len(weight.shape) == 3:
                row %= weight.strides[0] // weight.strides[1]
            for what, begin, unit in (("row", row, PANEL), ("column", col, stored.group_cols)):
                if stored.scaled and begin % unit:
                    raise InputError(
                        f"{node.name} begins at {what} {begin} of {weight.tensor}, "
                        f"in {stored.name} it must be a multiple of {unit}"
                    )
