"""repetition: a model of many equal layers as a short one of which some layers are repeated.

The passes plan the short model, and `runtime/repeat.py` makes the whole program of its tables. That is no proof of
anything: what is proved is the whole program.
"""

from __future__ import annotations

from dataclasses import replace

from tilecompile.models.config import Glm5Config
from tilecompile.runtime.repeat import Repeat

KEPT = 3
"""Periods that stay: the first, which follows other layers, the repeated one, and the last."""

MOST = 16
"""Layers of the longest period that is looked for."""


def shortened(config: Glm5Config) -> tuple[Glm5Config, Repeat | None]:
    """A model with as few layers as its plan needs, and how they are repeated; or the model itself where none are."""
    kinds = list(zip(config.mlp_layer_types, config.indexer_types, strict=True))
    saved, first, period = 0, 0, 1
    for length in range(1, MOST + 1):
        for begin in range(len(kinds)):
            end = begin + length
            while end < len(kinds) and kinds[end] == kinds[end - length]:
                end += 1
            spare = ((end - begin) // length - KEPT) * length
            if spare > saved:
                saved, first, period = spare, begin, length
    if not saved:
        return config, None
    cut = first + KEPT * period
    layers = [*range(cut), *range(cut + saved, len(kinds))]
    short = replace(
        config,
        num_hidden_layers=len(layers),
        mlp_layer_types=tuple(config.mlp_layer_types[i] for i in layers),
        indexer_types=tuple(config.indexer_types[i] for i in layers),
    )
    return short, Repeat(first + (KEPT - 2) * period, period, 1 + saved // period)
